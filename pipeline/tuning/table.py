"""What a person at the terminal sees of a search: a table that lives, or lines where there is no terminal."""

from __future__ import annotations

import atexit
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray import cloudpickle
from ray.tune import Callback
from rich.console import Console
from rich.live import Live
from rich.table import Table

from pipeline.config.search import SearchConfig
from pipeline.tuning.reasons import reason_of
from pipeline.tuning.space import active_part, describe_setting, describe_value

_REFRESH_S = 0.5
_NUM_ROWS = 20


class LiveTable(Callback):
    """Ray Tune calls this on the machine of the search, in its main thread.

    Args:
        search: what is searched.
        title: of the table.
        names: of what is drawn, the parameters of the space or others.
        num_trials: that there will be.
    """

    def __init__(self, search: SearchConfig, title: str, names: Sequence[str], num_trials: int) -> None:
        self._search, self._title, self._names, self._num_trials = search, title, tuple(names), num_trials
        self._live: Live | None = None
        self._console: Console | None = None
        self._drawn_at = 0.0

    def __getstate__(self) -> dict[str, Any]:
        """Tune keeps its callbacks with the search's state; a terminal is not kept."""
        return self.__dict__ | {"_live": None, "_console": None}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        self._say(f"{trial.trial_id} epoch {result['epoch']:.4g} {self._search.metric} {self._objective(result):.4f}")
        self._draw(trials)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._say(f"{trial.trial_id} started: {describe_setting(self._setting(trial))}")
        self._draw(trials)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        share = trial.last_result.get("share", 0)
        self._say(f"{trial.trial_id} {'finished' if share >= 1 else 'stopped early'}")
        self._draw(trials, at_once=True)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._say(f"{trial.trial_id} failed: {_reason(trial)}")
        self._draw(trials, at_once=True)

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self._draw(trials)

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        self._draw(trials, at_once=True)
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _say(self, line: str) -> None:
        console = self._terminal()
        if not console.is_terminal:
            console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _draw(self, trials: list[Any], at_once: bool = False) -> None:
        console, now = self._terminal(), time.monotonic()
        if not console.is_terminal or (now - self._drawn_at < _REFRESH_S and not at_once):
            return
        self._drawn_at = now
        if self._live is None:
            self._live = Live(console=console, auto_refresh=False)
            self._live.start()
            atexit.register(self._live.stop)  # gives the cursor back to a terminal whose search was interrupted
        self._live.update(self.table(trials), refresh=True)

    def table(self, trials: list[Any]) -> Table:
        """The best trials and all that run, best first."""
        metric, is_max = self._search.metric, self._search.direction == "max"
        table = Table(title=f"{self._title}: {self._counts(trials)}", title_justify="left")
        for name in ("trial", "state", "done", metric.removeprefix("val/"), *self._names):
            table.add_column(name, overflow="fold")

        def order(trial: Any) -> tuple[bool, float]:
            found = self._objective(trial.last_result or {})
            return found != found, -found if is_max else found

        shown = sorted((trial for trial in trials if trial.status != "PENDING"), key=order)
        for trial in shown[:_NUM_ROWS]:
            last, setting = trial.last_result or {}, self._setting(trial)
            values = [describe_value(setting[name]) if name in setting else "" for name in self._names]
            objective = self._objective(last)
            figure = "" if objective != objective else f"{objective:.4f}"
            table.add_row(trial.trial_id, _state(trial), f"{100 * last.get('share', 0):.0f} %", figure, *values)
        return table

    def _counts(self, trials: list[Any]) -> str:
        states = [_state(trial) for trial in trials]
        found = [f"{states.count(state)} {state}" for state in dict.fromkeys(states)]
        return f"{len(trials)} of {self._num_trials} trials, {', '.join(found)}"

    def _objective(self, result: Mapping[str, Any]) -> float:
        return float(result.get(self._search.metric, float("nan")))

    def _setting(self, trial: Any) -> dict[str, Any]:
        drawn = {name: trial.config[name] for name in self._names}
        return active_part(self._search, drawn) if drawn.keys() == self._search.space.keys() else drawn

    def _terminal(self) -> Console:
        if self._console is None:
            self._console = Console(file=sys.stderr)
        return self._console


def _state(trial: Any) -> str:
    if trial.status == "TERMINATED":
        return "finished" if (trial.last_result or {}).get("share", 0) >= 1 else "stopped"
    return {"ERROR": "failed"}.get(trial.status, str(trial.status).lower())


def _reason(trial: Any) -> str:
    """Tune has the error in a file of this machine; it may not be in the search's output yet."""
    path = Path(trial.pickled_error_file or "")
    return reason_of(cloudpickle.loads(path.read_bytes())) if path.is_file() else "its process ended without a word"
