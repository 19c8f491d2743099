"""The report of a search: what it says, that it says no more than the runs show, and that nothing breaks out of it."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html
import math
import re
from typing import Any

import numpy as np
import pytest

from pipeline.tuning import charts
from pipeline.tuning.comparison import compare
from pipeline.tuning.report import duration, render_report
from pipeline.tuning.results import Report, SearchResults, SearchSummary, Trial, Value
from tests.html_pages import check_self_contained

KEYS = ("optimizer.lr", "optimizer.kind", "optimizer.momentum", "head.margin")


def trial(name: str, *figures: float, setting: dict[str, Value] | None = None, **changed: Any) -> Trial:
    reports = tuple(
        Report(step, 640 * step, step / 2, 3.0 * step, {"val/score": figure})
        for step, figure in enumerate(figures, start=1)
    )
    return dataclasses.replace(Trial(name, "search", "finished", "", setting or {}, 0, reports), **changed)


def search(num: int = 12, **changed: Any) -> SearchResults:
    random = np.random.default_rng(1)
    trials = []
    for number in range(num):
        kind = ("sgd", "adamw")[number % 2]
        setting: dict[str, Value] = {
            "optimizer.lr": float(10 ** random.uniform(-4, 0)),
            "optimizer.kind": kind,
            "head.margin": (0.2, 0.35, 0.5)[number % 3],
        }
        if kind == "sgd":
            setting["optimizer.momentum"] = float(random.uniform(0.8, 0.99))
        top = 0.9 - 0.05 * (math.log10(float(setting["optimizer.lr"])) + 2) ** 2
        trials.append(trial(f"t{number}", *(top - 0.2 / step for step in (1, 2, 4)), setting=setting))
    best = max(trials, key=lambda one: one.objective("val/score") or 0.0)
    summary = SearchSummary(
        name="margins",
        metric="val/score",
        direction="max",
        recipe="configs/demo_cpu.yaml",
        keys=KEYS,
        default={"optimizer.lr": 0.1, "optimizer.kind": "sgd", "optimizer.momentum": 0.9},
        best_trial=best.id,
        seeds=(1, 2, 3),
        versions={"facemill": "0.1.0", "ray": "2.60.0", "torch": "2.14.0"},
        command="python launch/tune.py --config configs/tune/margins.yaml --num-samples 12",
        started="2026-11-24T16:00:00+00:00",
        seconds=492.0,
    )
    return SearchResults(dataclasses.replace(summary, **changed), tuple(trials))


def with_reruns(results: SearchResults, default: list[float], best: list[float]) -> SearchResults:
    more = [
        trial(f"{phase}-{seed}", figure, phase=phase, seed=seed, setting={})
        for phase, figures in (("default", default), ("best", best))
        for seed, figure in enumerate(figures, start=1)
    ]
    return SearchResults(results.summary, results.trials + tuple(more))


def words(page: str) -> str:
    """What a reader sees of a page, charts aside."""
    page = re.sub(r"</?(span|b|small|wbr)\b[^>]*>", "", page)
    page = re.sub(r"<(style|script|svg).*?</\1>|<[^>]*>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(page).split())


def test_a_whole_report() -> None:
    results = with_reruns(search(), [0.80, 0.81, 0.79], [0.90, 0.91, 0.89])
    failed = trial("t-bad", state="failed", reason="loss is not finite at step 61", setting={"optimizer.lr": 0.9})
    stopped = trial("t-short", 0.3, state="stopped", setting={"optimizer.lr": 0.5, "optimizer.kind": "sgd"})
    page = render_report(SearchResults(results.summary, (*results.trials, failed, stopped)))
    tags = check_self_contained(page, num_scripts=1)
    text = words(page)
    assert "0.900 ± 0.010 val/score of the best setting, trained again with 3 seeds." in text
    assert "The recipe's default gave 0.800 ± 0.010 with 3. The best setting is better by 0.100;" in text
    assert "trials: 12 finished, 1 stopped early, 1 failed" in text
    assert "8 min 12 s" in text
    assert "loss is not finite at step 61" in text
    assert "1 trial without a figure that counts left out." in text
    assert "python launch/tune.py \\ --config configs/tune/margins.yaml" in text
    assert "ray 2.60.0, torch 2.14.0" in text
    classes = [attributes.get("class") or "" for _, attributes in tags.tags]
    # parallel coordinates have all trials, the curves all that reported, reruns in neither
    assert classes.count("trial") == 14
    assert sum(name.startswith("line ") for name in classes) == 14 + 13
    assert sum(name.startswith("dot ") for name in classes) == 6
    assert classes.count("line failed") == 1
    assert classes.count("line best") == 2
    rows = re.findall(r'<tr class="(tone-\d|failed)(?: chosen)?"', page)
    assert (rows[0], rows[-1], len(rows)) == ("tone-5", "failed", 14)
    assert page.count(" chosen") == 2  # its style and its row


def test_the_page_lets_its_own_script_run_and_no_other() -> None:
    page = render_report(search())
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert script is not None
    assert policy is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert policy[1].endswith(f"; script-src 'sha256-{digest}'")
    assert policy[1].startswith("default-src 'none';")


def test_texts_of_users_stay_texts() -> None:
    evil = "<script>alert(1)</script>\"'>&"
    results = search(
        num=1, name=evil, recipe=evil, metric="val/score", keys=(*KEYS, evil), versions={evil: evil}, started=evil
    )
    setting: dict[str, Value] = {evil: evil, "optimizer.kind": evil, "optimizer.lr": 0.1}
    bad = trial("bad" + evil, 0.5, state="failed", reason=evil, setting=setting)
    good = trial("good" + evil, 0.5, setting=setting)
    summary = dataclasses.replace(results.summary, best_trial=good.id, default={evil: evil})
    page = render_report(with_reruns(SearchResults(summary, (bad, good)), [0.5, 0.6], [0.5, 0.7]))
    check_self_contained(page, num_scripts=1)
    assert "alert(1)" in page
    assert "<script>alert" not in page


@pytest.mark.parametrize(
    ("direction", "default", "best", "verdict", "said"),
    [
        ("max", [0.80, 0.81, 0.79], [0.90, 0.91, 0.89], "better", "The best setting is better by 0.100"),
        ("min", [0.80, 0.81, 0.79], [0.90, 0.91, 0.89], "worse", "The default is better, by 0.100"),
        ("min", [0.90, 0.91, 0.89], [0.80, 0.81, 0.79], "better", "The best setting is better by 0.100"),
        ("max", [0.80, 0.90, 0.70], [0.85, 0.95, 0.75], "no difference", "No difference shown"),
        ("max", [0.8, 0.8], [0.8, 0.8], "no difference", "No difference shown"),
        ("max", [0.8, 0.8], [0.9, 0.9], "better", "The best setting is better by 0.1000"),
        ("max", [0.80], [0.90, 0.91], "unknown", "Not known to differ"),
    ],
)
def test_verdicts(direction: str, default: list[float], best: list[float], verdict: str, said: str) -> None:
    results = with_reruns(search(direction=direction), default, best)
    found = compare(results)
    assert found is not None
    assert found.verdict == verdict
    assert found.difference == pytest.approx(np.mean(best) - np.mean(default))
    text = words(render_report(results))
    assert said in text
    assert ("95 % interval" in text) == (verdict != "unknown")
    assert ("run both with two seeds or more" in text) == (verdict == "unknown")


def test_interval_is_welchs() -> None:
    from scipy.stats import ttest_ind

    default, best = [0.80, 0.83, 0.79, 0.7], [0.90, 0.915, 0.89]
    found = compare(with_reruns(search(), default, best))
    assert found is not None
    expected = ttest_ind(best, default, equal_var=False).confidence_interval(0.95)
    assert found.interval == pytest.approx((expected.low, expected.high))
    assert found.best.figures == ((1, 0.90), (2, 0.915), (3, 0.89))
    assert found.best.std == pytest.approx(np.std(best, ddof=1))


def test_reruns_without_a_figure_are_said() -> None:
    results = with_reruns(search(), [0.8, math.nan, 0.82], [0.9, 0.91, 0.92])
    found = compare(results)
    assert found is not None
    assert (found.default.num_failed, found.best.num_failed) == (1, 0)
    assert "1 of 3 reruns of the recipe's default gave no figure" in words(render_report(results))
    results = with_reruns(search(), [math.nan, math.nan], [0.9, 0.91])
    assert compare(results) is None
    text = words(render_report(results))
    assert "Of the recipe's default, no rerun gave a figure (2 tried)." in text
    assert "0.9050 ± 0.0071 val/score of the best setting, trained again with 2 seeds. There is no figure of" in text
    text = words(render_report(with_reruns(search(), [0.8, 0.81], [math.nan])))
    assert "Of the best setting, no rerun gave a figure (1 tried)." in text
    assert "Not compared with the recipe's default" in text


def test_searches_with_little_to_show() -> None:
    alone = words(render_report(search(num=1)))
    assert "the best of 1 trial that gave a figure: one run, chosen because it came out on top" in alone
    assert "Only 1 trial gave a figure; it takes 8" in alone
    empty = search(best_trial=None, keys=())
    for trials in ((), (trial("x", state="failed", reason=""),), (trial("y", math.nan, setting={"a": 1}),)):
        page = render_report(SearchResults(empty.summary, trials))
        check_self_contained(page.replace('href="#failed"', ""), num_scripts=1)
        assert "No trial gave a figure." in words(page)
        assert "No trial gave a figure: there is nothing to explain." in words(page)
    assert "no reason given" in words(render_report(SearchResults(empty.summary, (trial("x", state="failed"),))))
    with pytest.raises(ValueError, match="'gone' is not among the trials"):
        render_report(search(best_trial="gone"))


def places(key_values: list[Value | None]) -> charts.Coordinate:
    trials = [trial(str(n), setting={} if v is None else {"k": v}) for n, v in enumerate(key_values)]
    return charts.coordinate("k", trials)


def test_numbers_over_decades_stand_on_a_logarithmic_axis() -> None:
    log = places([1e-4, 1e-3, 1e-2, 1e-1, 1.0, 3e-3, 3e-4, None])
    assert [log.places[str(n)] for n in range(5)] == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    assert log.places["7"] is None
    assert [text for _, text in log.ticks] == ["1e-4", "0.001", "0.01", "0.1", "1"]
    linear = places([1.0, 2.0, 3.0, 5.0, 11.0, 21.0, 41.0])
    at = [linear.places[str(n)] for n in range(7)]
    assert (at[6] - at[5]) == pytest.approx(2 * (at[5] - at[4]))  # type: ignore[operator]
    even = places([n / 200 for n in range(1, 201)])
    assert even.places["99"] == pytest.approx(0.5)
    # numbers below 0 have no logarithm
    assert places([-1.0, 1e-6, 1.0, 2.0]).places["1"] == pytest.approx(places([-1.0, 0.0, 1.0, 2.0]).places["1"])
    choice = places([512, 256, 128, 512])
    assert [text for _, text in choice.ticks] == ["128", "256", "512"]
    assert places([7, 7]).places == {"0": 0.5, "1": 0.5}


def test_names_and_booleans_stand_by_name() -> None:
    found = places(["b", "a", "b", True])
    assert sorted(text for _, text in found.ticks) == ["a", "b", "true"]
    ticks = {text: place for place, text in found.ticks}
    assert ticks["a"] > ticks["b"] > ticks["true"]
    # two of a name stand apart, inside its band
    assert found.places["0"] != found.places["2"]
    assert all(abs(float(found.places[one] or 0) - ticks["b"]) < 1 / 6 for one in ("0", "2"))


def test_far_figures_do_not_flatten_the_curves() -> None:
    trials = [*search().trials, trial("wild", 1e6, 0.5, setting={})]
    curves = charts.learning_curves(SearchResults(search().summary, tuple(trials)))
    assert curves is not None
    assert curves[1]
    assert "200k" not in curves[0]
    usual = charts.learning_curves(search())
    assert usual is not None
    assert not usual[1]


def test_figures_are_told_apart() -> None:
    assert [charts.decimals(one) for one in ([0.91, 0.92], [1.0, 50.0], [0.5], [], [0.1, 0.9])] == [4, 1, 4, 4, 3]
    assert [charts.shown(value) for value in (True, None, 0.00012345, 512, "x")] == [
        "true",
        "null",
        "0.0001234",
        "512",
        "x",
    ]
    assert [duration(value) for value in (3.21, 252, 7500)] == ["3.21 s", "4 min 12 s", "2 h 5 min"]
