"""Importances of searches whose truth is known."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
import pytest

from pipeline.tuning.importance import MIN_TRIALS, Importances, key_importances
from pipeline.tuning.results import Report, SearchResults, SearchSummary, Trial, Value

Draw = Callable[[np.random.Generator], tuple[Mapping[str, Value], float]]


def search(num: int, keys: tuple[str, ...], draw: Draw) -> SearchResults:
    random = np.random.default_rng(7)
    trials = []
    for number in range(num):
        setting, figure = draw(random)
        reports = (Report(1, 64, 1.0, 1.0, {"m": figure}),)
        trials.append(Trial(str(number), "search", "finished", "", setting, 0, reports))
    summary = SearchSummary("s", "m", "max", "r.yaml", keys, {}, None, (), {}, "c", "t", 1.0)
    return SearchResults(summary, tuple(trials))


def means(found: Importances) -> dict[str, float]:
    assert found.reason == ""
    return {one.key: one.mean for one in found.keys}


def additive(random: np.random.Generator) -> tuple[Mapping[str, Value], float]:
    a, b, c = random.uniform(size=3)
    return {"a": 10 ** (4 * a), "b": b, "c": c}, 2 * a + b


def test_shares_of_an_additive_function() -> None:
    results = search(200, ("c", "b", "a"), additive)
    found = key_importances(results)
    assert [one.key for one in found.keys] == ["a", "b", "c"]
    shares = means(found)
    # variances are 4 : 1 : 0
    assert shares["a"] == pytest.approx(0.8, abs=0.12)
    assert shares["b"] == pytest.approx(0.2, abs=0.08)
    assert shares["c"] == pytest.approx(0.0, abs=0.02)
    assert [one.is_shown for one in found.keys[:2]] == [True, True]
    assert found.explained == pytest.approx(0.95, abs=0.05)
    assert (found.num_trials, found.num_left_out) == (200, 0)
    assert key_importances(results) == found


def test_a_category_counts_as_one_key() -> None:
    effects = {"sgd": 0.0, "adam": 1.0, "adamw": 2.0, "lion": 5.0}

    def draw(random: np.random.Generator) -> tuple[Mapping[str, Value], float]:
        kind = str(random.choice(list(effects)))
        setting = {"kind": kind, "flip": bool(random.integers(2)), "x": float(random.uniform())}
        return setting, effects[kind] + random.normal(scale=0.1)

    found = key_importances(search(60, ("kind", "flip", "x"), draw))
    shares = means(found)
    assert shares["kind"] == pytest.approx(1.0, abs=0.2)
    assert abs(shares["flip"]) + abs(shares["x"]) < 0.03


@pytest.mark.parametrize("given", [0.3, "fast"])
def test_a_key_that_another_switches_on_does_not_take_its_credit(given: Value) -> None:
    def draw(random: np.random.Generator) -> tuple[Mapping[str, Value], float]:
        kind = ("sgd", "adam")[random.integers(2)]
        dependent = {"momentum": random.uniform() if given == 0.3 else str(random.choice(["fast", "slow"]))}
        return {"kind": kind, **(dependent if kind == "sgd" else {})}, float(kind == "sgd") + random.normal(scale=0.05)

    shares = means(key_importances(search(40, ("momentum", "kind"), draw)))
    assert shares["kind"] == pytest.approx(1.0, abs=0.2)
    assert abs(shares["momentum"]) < 0.03


def test_a_dependent_key_that_matters_is_seen() -> None:
    def draw(random: np.random.Generator) -> tuple[Mapping[str, Value], float]:
        kind, momentum = ("sgd", "adam")[random.integers(2)], float(random.uniform())
        return ({"kind": kind, "momentum": momentum}, momentum) if kind == "sgd" else ({"kind": kind}, 0.5)

    found = key_importances(search(80, ("kind", "momentum"), draw))
    assert (found.keys[0].key, found.keys[0].is_shown) == ("momentum", True)


@pytest.mark.parametrize("value", [3.0, "text"])
def test_a_gap_that_nothing_decides_is_a_value(value: Value) -> None:
    def draw(random: np.random.Generator) -> tuple[Mapping[str, Value], float]:
        present = bool(random.integers(2))
        noise = random.normal(scale=0.05)
        return {"x": float(random.uniform()), **({"y": value} if present else {})}, float(present) + noise

    shares = means(key_importances(search(40, ("x", "y"), draw)))
    assert shares["y"] == pytest.approx(1.0, abs=0.2)
    assert abs(shares["x"]) < 0.03


def test_noise_has_no_bars() -> None:
    def draw(random: np.random.Generator) -> tuple[Mapping[str, Value], float]:
        return {"x": float(random.uniform()), "y": str(random.integers(3))}, random.normal()

    found = key_importances(search(30, ("x", "y"), draw))
    assert found.keys == ()
    assert "no better than by their mean" in found.reason
    assert found.explained is not None
    assert found.explained < 0.3


def test_too_few_and_equal_trials() -> None:
    few = key_importances(search(MIN_TRIALS - 1, ("a", "b"), additive))
    assert (few.keys, few.explained) == ((), None)
    assert few.reason == "Only 7 trials gave a figure; it takes 8 to say what a key explains."
    equal = key_importances(search(20, ("a",), lambda random: ({"a": float(random.uniform())}, 0.3)))
    assert (equal.keys, equal.reason) == ((), "All trials gave the same figure: there is nothing to explain.")


def test_failures_and_reruns_are_left_out() -> None:
    results = search(40, ("a", "b", "c"), additive)
    expected = key_importances(results)
    wild = (Report(1, 64, 1.0, 1.0, {"m": 1e6}),)
    setting = {"a": 1.0, "b": 0.5, "c": 0.5}
    more = (
        Trial("failed", "search", "failed", "NaN", setting, 0, wild),
        Trial("silent", "search", "unfinished", "", setting, 0, ()),
        Trial("rerun", "best", "finished", "", setting, 1, wild),
    )
    found = key_importances(SearchResults(results.summary, results.trials + more))
    assert dataclasses.replace(found, num_left_out=0) == expected
    assert found.num_left_out == 2


def test_a_key_that_never_varied_or_applied_explains_nothing() -> None:
    def draw(random: np.random.Generator) -> tuple[Mapping[str, Value], float]:
        x = float(random.uniform())
        return {"x": x, "constant": "sgd"}, x

    shares = means(key_importances(search(30, ("x", "constant", "never"), draw)))
    assert (shares["constant"], shares["never"]) == (0.0, 0.0)
