"""results.parquet gives back what was put in, and is a plain table to everything else."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.errors import UserError
from pipeline.tuning.results import (
    Report,
    SearchResults,
    SearchSummary,
    Trial,
    Value,
    read_results,
    write_results,
)

SUMMARY = SearchSummary(
    name="margins",
    metric="val/score",
    direction="max",
    recipe="configs/demo_cpu.yaml",
    keys=("optimizer.lr", "head.kind"),
    default={"optimizer.lr": 0.1},
    best_trial="a",
    seeds=(1, 2),
    versions={"ray": "2.60.0"},
    command="python launch/tune.py --config x.yaml",
    started="2026-11-24T16:00:00+00:00",
    seconds=61.5,
)

texts = st.text(st.characters(codec="utf-8"), max_size=12)
names = st.text(st.sampled_from("abc./_é<"), min_size=1, max_size=6).map(lambda name: "x" + name)
numbers = st.floats(allow_nan=False)
values = st.one_of(st.booleans(), st.integers(), numbers, texts)
step = st.integers(0, 2**62)
reports = st.builds(
    Report,
    step=step,
    samples=step,
    epoch=numbers,
    seconds=numbers,
    figures=st.dictionaries(names, numbers, max_size=3),
)


@st.composite
def trial_lists(draw: st.DrawFn) -> tuple[Trial, ...]:
    # a key mostly has values of one kind, as in a search, and sometimes of any
    kinds = st.sampled_from([st.booleans(), st.integers(-5, 5), st.integers(), numbers, texts, values])
    keys = draw(st.dictionaries(names, kinds, max_size=4))
    trials = st.builds(
        Trial,
        id=texts,
        phase=st.sampled_from(["search", "default", "best"]),
        state=st.sampled_from(["finished", "stopped", "failed", "unfinished"]),
        reason=texts,
        setting=st.fixed_dictionaries({}, optional=keys),
        seed=step,
        reports=st.lists(reports, max_size=3).map(tuple),
    )
    return tuple(draw(st.lists(trials, max_size=4, unique_by=lambda trial: trial.id)))


summaries = st.builds(
    SearchSummary,
    name=texts,
    metric=texts,
    direction=st.sampled_from(["max", "min"]),
    recipe=texts,
    keys=st.lists(names, max_size=3, unique=True).map(tuple),
    default=st.dictionaries(names, st.none() | values, max_size=3),
    best_trial=st.none() | texts,
    seeds=st.lists(st.integers(), max_size=3).map(tuple),
    versions=st.dictionaries(texts, texts, max_size=2),
    command=texts,
    started=texts,
    seconds=numbers,
)


def kinds(results: SearchResults) -> list[list[type]]:
    return [[type(value) for value in trial.setting.values()] for trial in results.trials]


@settings(max_examples=150, deadline=None)
@given(summary=summaries, trials=trial_lists())
def test_what_was_written_is_read(
    summary: SearchSummary, trials: tuple[Trial, ...], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "results.parquet"
    written = SearchResults(summary, trials)
    write_results(written, path)
    assert read_results(path) == written


def report(step: int, /, **figures: float) -> Report:
    return Report(step=step, samples=64 * step, epoch=step / 10, seconds=2.0 * step, figures=figures)


def trial(name: str, setting: dict[str, Value], *reports: Report, state: str = "finished") -> Trial:
    return Trial(name, "search", state, "", setting, 0, reports)  # type: ignore[arg-type]


def test_the_table_is_plain(tmp_path: Path) -> None:
    trials = (
        trial("a", {"lr": 0.1, "kind": "sgd", "flip": True, "batch": 64, "size": "auto"}, report(1, loss=2.0)),
        trial("b", {"lr": 1, "kind": "adam", "flip": False, "size": 3}, report(1, loss=math.nan), report(2, acc=0.5)),
        trial("c", {}, state="failed"),
    )
    path = tmp_path / "results.parquet"
    write_results(SearchResults(SUMMARY, trials), path)
    table = pq.read_table(path)
    fixed = ["trial", "phase", "state", "reason", "seed", "step", "samples", "epoch", "seconds"]
    assert table.column_names[:9] == fixed
    # the searched keys come first, and the one that no trial set has its column all the same
    assert table.column_names[9:11] == ["setting/optimizer.lr", "setting/head.kind"]
    assert table.num_rows == 4
    found = table.to_pydict()
    assert found["trial"] == ["a", "b", "b", "c"]
    assert found["step"] == [1, 1, 2, None]
    assert found["setting/lr"] == [0.1, 1.0, 1.0, None]
    assert found["setting/kind"] == ["sgd", "adam", "adam", None]
    assert found["setting/size"] == ['"auto"', "3", "3", None]
    assert found["acc"] == [None, None, 0.5, None]
    schema = table.schema
    assert (schema.field("setting/flip").type, schema.field("setting/batch").type) == (pa.bool_(), pa.int64())
    again = read_results(path)
    assert kinds(again)[0] == [float, str, bool, int, str]
    assert math.isnan(again.trials[1].reports[0].figures["loss"])
    assert "acc" not in again.trials[1].reports[0].figures
    assert [path.name for path in tmp_path.iterdir()] == ["results.parquet"]


def test_objective_is_the_last_finite_report() -> None:
    assert trial("a", {}, report(1, m=0.9), report(2, m=0.4)).objective("m") == 0.4
    assert trial("a", {}, report(1, m=0.9), report(2, m=math.inf)).objective("m") is None
    assert trial("a", {}, report(1, m=0.9), report(2)).objective("m") is None
    assert trial("a", {}).objective("m") is None


def test_scored_trials_come_best_first_and_without_failures() -> None:
    trials = (
        trial("a", {}, report(1, m=0.5)),
        trial("b", {}, report(1, m=0.7), state="stopped"),
        trial("c", {}, report(1, m=0.9), state="failed"),
        trial("d", {}),
        dataclasses.replace(trial("e", {}, report(1, m=0.8)), phase="best"),
    )
    results = SearchResults(dataclasses.replace(SUMMARY, metric="m"), trials)
    assert [(one.id, value) for one, value in results.scored()] == [("b", 0.7), ("a", 0.5)]
    assert [one.id for one, _ in results.scored("best")] == ["e"]
    least = SearchResults(dataclasses.replace(SUMMARY, metric="m", direction="min"), trials)
    assert [one.id for one, _ in least.scored()] == ["a", "b"]
    assert results.best() is trials[0]


def test_mistakes(tmp_path: Path) -> None:
    path = tmp_path / "results.parquet"
    for trials, message in (
        ((trial("a", {}), trial("a", {})), "two trials share an id"),
        ((trial("a", {}, report(1, step=1.0)),), "figure 'step': the name of another column"),
        ((trial("a", {}, report(1, **{"setting/x": 1.0})),), "the name of another column"),
    ):
        with pytest.raises(ValueError, match=message):
            write_results(SearchResults(SUMMARY, trials), path)
    assert not path.exists()
    with pytest.raises(UserError, match=r"results.parquet: unreadable"):
        read_results(path)
    path.write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"results.parquet: unreadable"):
        read_results(path)
    pq.write_table(pa.table({"trial": ["a"]}), path)
    with pytest.raises(UserError, match="not the results of a search"):
        read_results(path)
