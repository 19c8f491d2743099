"""The table of a search: best first, what failed with its reason, nothing for parameters that do not count."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline.config.load import validate_tree
from pipeline.config.search import SearchConfig
from pipeline.tuning.table import LiveTable


class FakeTrial:
    def __init__(self, name: str, status: str, config: dict[str, Any], result: dict[str, Any] | None = None) -> None:
        self.trial_id, self.status, self.config, self.last_result = name, status, config, result

        self.pickled_error_file: str | None = None


def search(direction: str) -> SearchConfig:
    space = {
        "optim.backbone.kind": {"kind": "choice", "of": ["sgd", "adamw"]},
        "optim.backbone.momentum": {
            "kind": "uniform",
            "low": 0.5,
            "high": 0.99,
            "when": {"optim.backbone.kind": ["sgd"]},
        },
    }
    tree = {"recipe": "r", "output": "o", "space": space, "metric": "val/score", "direction": direction}
    return validate_tree(SearchConfig, tree, "search")


def trials() -> list[FakeTrial]:
    sgd = {"optim.backbone.kind": "sgd", "optim.backbone.momentum": 0.54321}
    adamw = {**sgd, "optim.backbone.kind": "adamw"}
    return [
        FakeTrial("low", "TERMINATED", sgd, {"val/score": 0.25, "share": 0.5, "epoch": 1}),
        FakeTrial("high", "TERMINATED", adamw, {"val/score": 0.75, "share": 1.0, "epoch": 2}),
        FakeTrial("begun", "RUNNING", sgd),
        FakeTrial("bad", "ERROR", sgd, {}),
        FakeTrial("waits", "PENDING", sgd),
    ]


@pytest.mark.parametrize(("direction", "order"), [("max", ["high", "low"]), ("min", ["low", "high"])])
def test_best_first(direction: str, order: list[str]) -> None:
    table = LiveTable(search(direction), "search", list(search(direction).space), 8).table(trials())
    columns = [list(column.cells) for column in table.columns]
    assert columns[0] == [*order, "begun", "bad"]
    by_name = dict(zip(columns[0], zip(*columns[1:], strict=True), strict=True))
    assert by_name["high"] == ("finished", "100 %", "0.7500", "adamw", "")
    assert by_name["low"] == ("stopped", "50 %", "0.2500", "sgd", "0.5432")
    assert by_name["begun"][:3] == ("running", "0 %", "")
    assert by_name["bad"][0] == "failed"
    assert "5 of 8 trials" in str(table.title)


def test_lines_without_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = LiveTable(search("max"), "search", list(search("max").space), 8)
    low, high, begun, bad, waits = trials()
    bad.pickled_error_file = str(tmp_path / "error.pkl")
    (tmp_path / "error.pkl").write_bytes(pickle.dumps(RuntimeError("step 3: loss nan")))
    table.on_trial_start(1, [], begun)
    table.on_trial_result(1, [], low, {"val/score": 0.25, "epoch": 1.004})
    table.on_trial_complete(1, [], low)
    table.on_trial_complete(1, [], high)
    table.on_trial_error(1, [], bad)
    table.on_trial_error(1, [], waits)
    assert capsys.readouterr().err.splitlines() == [
        "begun started: optim.backbone.kind=sgd optim.backbone.momentum=0.5432",
        "low epoch 1.004 val/score 0.2500",
        "low stopped early",
        "high finished",
        "bad failed: step 3: loss nan",
        "waits failed: its process ended without a word",
    ]


def test_on_a_terminal_the_table_lives_and_can_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    table = LiveTable(search("max"), "search", list(search("max").space), 8)
    screen = io.StringIO()
    monkeypatch.setattr(table, "_console", Console(file=screen, force_terminal=True, width=120))
    table.on_trial_complete(1, trials(), trials()[1])
    pickle.loads(pickle.dumps(table)).on_step_end(1, trials())
    table.on_experiment_end(trials())
    assert "0.7500" in screen.getvalue()
    assert "finished" in screen.getvalue()
