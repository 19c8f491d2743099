"""Pairs that were dropped take their groups along; rates and their worst, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.evaluate.by_group import figures_by_group
from pipeline.evaluate.group_errors import measure_groups
from pipeline.evaluate.grouped_pairs import Groups
from pipeline.evaluate.pairs import Pair, Photo, fold_in_turn
from pipeline.evaluate.run import ScoredPairs

A1, A2, B1, B2, C1 = (Photo(name[0], int(name[1])) for name in ("A1", "A2", "B1", "B2", "C1"))


def test_rates_by_hand_with_a_photo_missing() -> None:
    pairs = [Pair(A1, A2, 0), Pair(C1, A1, 0), Pair(B1, B2, 0), Pair(A1, B1, 0), Pair(B2, A2, 0)]
    kept = [pair for pair in pairs if C1 not in pair]
    scored = ScoredPairs(
        pairs=kept,
        distances=np.array([0.2, 1.9, 0.3, 0.8]),
        same=np.array([True, True, False, False]),
        fold=np.zeros(4, np.int64),
        missing={C1: "no file"},
        num_photos=4,
        num_dropped=1,
        place=np.array([0, 2, 3, 4]),
    )
    groups = {
        "tone": Groups(["dark", "?", "light", "dark", "light"], ["dark", "?", "light", "light", "dark"]),
        "all": Groups(["x"] * 5, ["x"] * 5),
    }
    found = measure_groups(scored, groups, 0.8, is_carried=False, knows_people=True)
    tone, every = found.groupings
    assert (tone.name, every.name) == ("tone", "all")
    # The pair with the missing photo was the one of group "?".
    assert [one.groups for one in tone.rates] == [("dark", "dark"), ("dark", "light"), ("light", "light")]
    dark, across, light = tone.rates
    assert dark.fmr is None
    assert across.fnmr is None
    assert dark.fnmr is not None
    assert light.fnmr is not None
    assert across.fmr is not None
    assert (dark.fnmr.errors, dark.fnmr.trials, light.fnmr.errors) == (0, 1, 1)
    # At the threshold a pair is not accepted.
    assert (across.fmr.errors, across.fmr.trials, across.fmr.value) == (1, 2, 0.5)
    assert dark.fnmr.low == 0.0 < dark.fnmr.high
    assert tone.fnmr is not None
    assert (tone.fnmr.worst, tone.fnmr.best, tone.fnmr.ratio) == (("light", "light"), ("dark", "dark"), None)
    assert tone.fmr is None
    assert every.rates[0].fnmr is not None
    assert every.rates[0].fnmr.value == 0.5
    assert "on these very pairs" in found.protocol
    assert "of another set" in measure_groups(scored, groups, 0.8, is_carried=True, knows_people=True).protocol


def test_pairs_without_a_group_are_in_no_group() -> None:
    pairs = [Pair(A1, A2, 0), Pair(B1, B2, 0), Pair(A1, B1, 0), Pair(A2, B2, 0)]
    scored = ScoredPairs(
        pairs, np.array([0.2, 1.9, 1.0, 0.1]), np.array([True, True, False, False]), None, {}, 4, 0, np.arange(4)
    )
    groups = {"tone": Groups(["x", "", "x", ""], ["x", "", "", "x"]), "none": Groups([""] * 4, [""] * 4)}
    tone, none = measure_groups(scored, groups, 0.8, is_carried=False, knows_people=True).groupings
    assert [one.groups for one in tone.rates] == [("x", "x")]
    assert tone.rates[0].fnmr is not None
    assert (tone.rates[0].fnmr.trials, tone.rates[0].fmr) == (1, None)
    # All pairs that had a group were dropped.
    assert (none.rates, none.fmr, none.fnmr) == ([], None, None)
    assert [[one.group for one in found] for found in figures_by_group(scored, groups).values()] == [["x"], []]


def test_folds_in_turn_keep_all_pairs_in_order() -> None:
    same = [Pair(Photo("A", 1), Photo("A", number), 0) for number in range(2, 5)]
    different = [Pair(Photo("A", 1), Photo("B", number), 0) for number in range(1, 13)]
    dealt = fold_in_turn([different[0], *same, *different[1:]])
    assert [pair._replace(fold=0) for pair in dealt.pairs] == [different[0], *same, *different[1:]]
    assert [pair.fold for pair in dealt.pairs if pair.same] == [0, 1, 2]
    assert [pair.fold for pair in dealt.pairs if not pair.same] == [*range(10), 0, 1]
    assert dealt.num_folds == 10
    assert fold_in_turn([]).pairs == []


def test_intervals_are_over_people() -> None:
    """One person in half of the pairs: drawing pairs would give a narrower interval than drawing people."""
    photos = [Photo(f"p{n}", k) for n in range(10) for k in range(20)]
    pairs = [Pair(photos[20 * n], photos[20 * n + k], 0) for n in range(10) for k in range(1, 20)]
    distances = np.array([1.5 if pair.left.identity in ("p0", "p1") else 0.1 for pair in pairs])
    scored = ScoredPairs(pairs, distances, np.ones(190, bool), np.zeros(190, np.int64), {}, 200, 0, np.arange(190))
    groups = {"all": Groups(["x"] * 190, ["x"] * 190)}
    found = measure_groups(scored, groups, 1.0, is_carried=False, knows_people=True)
    rate = found.groupings[0].rates[0].fnmr
    assert rate is not None
    assert (rate.value, rate.method) == (0.2, "bootstrap")
    # Of ten people, 0 to 5 of the two kinds are drawn 95 % of the time.
    assert (rate.low, rate.high) == pytest.approx((0.0, 0.5), abs=0.051)
    assert "intervals over people" in found.protocol
    by_pair = measure_groups(scored, groups, 1.0, is_carried=False, knows_people=False)
    narrow = by_pair.groupings[0].rates[0].fnmr
    assert narrow is not None
    assert rate.low < narrow.low < 0.2 < narrow.high < rate.high
    assert (narrow.low, narrow.high) == pytest.approx((0.145, 0.258), abs=0.015)  # 0.2 ± 1.96 sqrt(0.2 · 0.8 / 190)
    assert "intervals over pairs" in by_pair.protocol
