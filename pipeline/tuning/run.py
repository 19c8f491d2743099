"""`launch/tune.py`: a search, the comparison after it, and what both leave behind."""

from __future__ import annotations

import shlex
import sys
import tempfile
from contextlib import nullcontext
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import yaml
from rich.console import Console

from pipeline.atomic_write import write_atomically
from pipeline.config.errors import UserError
from pipeline.config.location import Location
from pipeline.config.search import SearchConfig
from pipeline.data.remote import open_filesystem
from pipeline.lock import exclusive
from pipeline.tuning.cluster import cluster, num_trials_at_a_time
from pipeline.tuning.report import render_report
from pipeline.tuning.results import SearchResults, SearchSummary, Trial, scored, write_results
from pipeline.tuning.search import MOST_WAITING_AT_A_TIME, run_comparison, run_search
from pipeline.tuning.space import describe_setting, recipe_setting, trial_config
from pipeline.tuning.translate import has_waiting_trials

SEARCH_FILE, RESULTS_FILE, REPORT_FILE, BEST_FILE = "search.yaml", "results.parquet", "report.html", "best.yaml"
# another value of these does not make it another search
_FREE_KEYS = {"workers", "comparison_seeds", "output"}


def run(search: SearchConfig, address: str | None, is_resumed: bool, dashboard_host: str, dashboard_port: int) -> None:
    """Search, compare, and write everything into the search's output.

    Args:
        search: checked.
        address: of a running cluster; None starts one here.
        is_resumed: go on with what stands in the output, if anything does.
        dashboard_host: see `cluster`.
        dashboard_port: see `cluster`.

    Raises:
        UserError: another search stands in the output, or any without `is_resumed`; no cluster, or no room; no trial
            succeeded.
        InUseError: a search is running in the output, a folder.
    """
    with exclusive(search.output) if isinstance(search.output, Path) else nullcontext():
        _run_alone(search, address, is_resumed, dashboard_host, dashboard_port)


def _run_alone(
    search: SearchConfig, address: str | None, is_resumed: bool, dashboard_host: str, dashboard_port: int
) -> None:
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    started = _take_place(search, is_resumed)
    with cluster(address, dashboard_host, dashboard_port) as dashboard:
        at_a_time = search.max_concurrent or num_trials_at_a_time(
            search.workers, on_one_node=not isinstance(search.output, Path)
        )
        if has_waiting_trials(search):
            at_a_time = min(at_a_time, MOST_WAITING_AT_A_TIME)
        if dashboard:
            console.print(f"dashboard {dashboard} (its token: ray get-auth-token)")
        console.print(f"{search.num_samples} settings, {at_a_time} at a time, {search.workers.count} processes each")
        trials = run_search(search, at_a_time, is_resumed)
        best = _best(search, trials)
        if best is not None and search.comparison_seeds:
            console.print(f"comparison of {best.id} with the recipe on seeds {search.comparison_seeds}")
            trials += run_comparison(search, best, at_a_time, is_resumed)
    summary = SearchSummary(
        name=str(search.output).rstrip("/").rpartition("/")[2],
        metric=search.metric,
        direction=search.direction,
        recipe=str(search.recipe),
        keys=tuple(search.space),
        default=recipe_setting(search),
        best_trial=None if best is None else best.id,
        seeds=search.comparison_seeds,
        versions={name: version(name) for name in ("facemill", "ray", "torch")},
        command=shlex.join(["python", *sys.argv]),
        started=started.isoformat(timespec="seconds"),
        seconds=(datetime.now(UTC) - started).total_seconds(),
    )
    results = SearchResults(summary, tuple(trials))
    with tempfile.TemporaryDirectory() as folder:
        write_results(results, Path(folder) / RESULTS_FILE)
        _write(search.output, RESULTS_FILE, (Path(folder) / RESULTS_FILE).read_bytes())
    _write(search.output, REPORT_FILE, render_report(results).encode())
    if best is None:
        reasons = sorted({trial.reason for trial in trials if trial.reason})
        raise UserError(search.output, "no trial succeeded", remedy="; ".join(reasons[:3]))
    config = trial_config(search, best.setting).model_dump(mode="json")
    config["output"] = str(Path(config["output"]).with_name(Path(config["output"]).name + "-best"))
    _write(search.output, BEST_FILE, yaml.safe_dump(config, sort_keys=False).encode())
    console.print(
        f"best {best.id}: {search.metric} {best.objective(search.metric):.4f}, {describe_setting(best.setting)}"
    )
    console.print(f"report {search.output / REPORT_FILE}")
    if isinstance(search.output, Path):
        console.print(f"train it: launch/train.py --config {search.output / BEST_FILE}")


def _best(search: SearchConfig, trials: list[Trial]) -> Trial | None:
    """The best among those that went furthest: at the same length where two can be compared at all."""
    ranked = [trial for trial, _ in scored(trials, search.metric, search.direction)]
    return next((trial for trial in ranked if trial.state == "finished"), ranked[0] if ranked else None)


def _take_place(search: SearchConfig, is_resumed: bool) -> datetime:
    """Write down what is searched, or see that what is gone on with is the same; gives when the search began.

    Raises:
        UserError: it is not, or there is something already.
    """
    found = _read(search.output, SEARCH_FILE)
    tree = search.model_dump(mode="json")
    tree["recipe_is"] = trial_config(search, {}).model_dump(mode="json")  # the file may be edited
    if found is None:
        now = datetime.now(UTC)
        tree["started"] = now.isoformat()
        _write(search.output, SEARCH_FILE, yaml.safe_dump(tree, sort_keys=False).encode())
        return now
    if not is_resumed:
        raise UserError(search.output, "a search stands there", "an empty place", "say --resume, or another output")
    old = yaml.safe_load(found)
    for key in sorted(tree.keys() - _FREE_KEYS):
        if old.get(key) != tree[key]:
            raise UserError(
                key, f"{tree[key]!r}, but the search in {search.output} has {old.get(key)!r}", remedy="another output"
            )
    return datetime.fromisoformat(old["started"])


def _read(place: Location, name: str) -> bytes | None:
    if isinstance(place, Path):
        return (place / name).read_bytes() if (place / name).exists() else None
    filesystem = open_filesystem(place.scheme)
    goal = (place / name).url
    found: bytes | None = filesystem.cat_file(goal) if filesystem.exists(goal) else None
    return found


def _write(place: Location, name: str, content: bytes) -> None:
    if isinstance(place, Path):
        place.mkdir(parents=True, exist_ok=True)
        write_atomically(place / name, content)
        return
    open_filesystem(place.scheme).pipe_file((place / name).url, content)
