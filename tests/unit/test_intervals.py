"""Bootstrap over people: weights by hand, weighted figures against repeated pairs, and coverage on made-up people."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.errors import UserError
from pipeline.evaluate import intervals
from pipeline.evaluate import verification as v


def test_a_pair_counts_as_often_as_its_people_were_drawn() -> None:
    drawn = np.array([0, 1, 2, 3])
    left, right = np.array([0, 1, 2, 2, 0, 3]), np.array([0, 1, 2, 3, 3, 2])
    assert intervals.pair_weights(drawn, left, right).tolist() == [0, 1, 2, 6, 0, 6]


def test_as_many_people_are_drawn_as_there_are() -> None:
    draws = list(intervals.draw_people(7, 50, seed=3))
    assert all(drawn.sum() == 7 and len(drawn) == 7 for drawn in draws)
    assert any((drawn > 1).any() for drawn in draws)
    again = intervals.draw_people(7, 50, seed=3)
    assert all((one == other).all() for one, other in zip(draws, again, strict=True))
    assert any((one != other).any() for one, other in zip(draws, intervals.draw_people(7, 50, seed=4), strict=True))


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), num_pairs=st.integers(2, 40), ties=st.booleans())
def test_weighted_figures_are_those_of_pairs_repeated(seed: int, num_pairs: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    same = rng.random(num_pairs) < 0.5
    distances = rng.choice(v.GRID[::40], num_pairs) if ties else rng.random(num_pairs) * 4
    fold = rng.integers(0, 3, num_pairs)
    weights = rng.integers(0, 4, num_pairs)
    found = intervals.VerificationFigures(distances, same, fold, {"tar@0.3": 0.3})(weights.astype(np.float64))
    repeated = np.repeat(np.arange(num_pairs), weights)
    distances, same, fold = distances[repeated], same[repeated], fold[repeated]
    if len(np.unique(fold)) < 2:
        assert np.isnan(found["accuracy"])
    else:
        assert found["accuracy"] == pytest.approx(v.fold_accuracy(distances, same, fold).mean, abs=1e-12)
    if len(same) == 0 or same.all() or not same.any():
        assert all(np.isnan(found[name]) for name in ("auc", "eer", "d_prime", "tar@0.3"))
        return
    roc = v.roc_curve(distances, same)
    assert found["auc"] == pytest.approx(v.area_under_curve(roc))
    assert found["eer"] == pytest.approx(v.equal_error_rate(roc))
    allowed = [tar for tar, far in zip(roc.tar, roc.far, strict=True) if far <= 0.3 + 1e-12]
    assert found["tar@0.3"] == pytest.approx(max(allowed))
    expected = v.d_prime(distances, same)
    assert np.isnan(found["d_prime"]) if expected is None else found["d_prime"] == pytest.approx(expected)


def test_bootstrap_equals_a_loop_over_copies_of_people() -> None:
    people = np.array([5, 9, 7, 5, 9])
    left, right = people, np.array([5, 9, 7, 9, 7])
    right_answers = np.array([1.0, 0.0, 1.0, 1.0, 0.0])
    expected = []
    random = np.random.RandomState(11)
    for _ in range(200):
        draw = [[5, 7, 9][i] for i in random.randint(3, size=3)]
        votes = []
        for a, b, answer in zip(left, right, right_answers, strict=True):
            copies = draw.count(a) if a == b else draw.count(a) * draw.count(b)
            votes += [answer] * copies
        expected.append(np.mean(votes))
    found = intervals.bootstrap(
        lambda weights: {"share": np.average(right_answers, weights=weights)},
        left,
        right,
        num_resamples=200,
        level=0.9,
        seed=11,
    )["share"]
    assert found is not None
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(expected, [0.05, 0.95])))


def test_intervals_over_people_are_wider_than_over_pairs_where_people_differ() -> None:
    """Twenty people with fifty same pairs each; a person's pairs are all right or all wrong."""
    rng = np.random.default_rng(0)
    person = np.repeat(np.arange(20), 50)
    is_right = (rng.random(20) < 0.7)[person].astype(float)

    def width(left: np.ndarray, right: np.ndarray) -> float:
        found = intervals.bootstrap(
            lambda weights: {"x": np.average(is_right, weights=weights)}, left, right, num_resamples=300
        )
        assert found["x"] is not None
        return found["x"].high - found["x"].low

    pairs = np.arange(1000)
    assert width(person, person) > 4 * width(pairs, pairs)


def test_intervals_are_sqrt_3_too_wide_where_each_person_is_in_one_pair() -> None:
    """As the docs say: the product of two people's weights varies three times as much as one weight does."""
    is_right = np.arange(2000) % 4 > 0
    widths = []
    for right in (np.arange(2000), np.arange(2000) + 2000):
        found = intervals.bootstrap(
            lambda weights: {"x": weights @ is_right / weights.sum()}, np.arange(2000), right, num_resamples=2000
        )["x"]
        assert found is not None
        widths.append(found.high - found.low)
    assert widths[1] / widths[0] == pytest.approx(np.sqrt(3.0), rel=0.12)


def test_about_95_of_100_intervals_hold_the_truth() -> None:
    """Same pairs of people who are recognised with chances of their own, 0.8 on average."""
    rng = np.random.default_rng(1)
    person = np.repeat(np.arange(60), 5)
    held = 0
    for _ in range(200):
        chance = rng.beta(4, 1, 60)[person]
        is_right = (rng.random(300) < chance).astype(float)
        found = intervals.bootstrap(
            lambda weights, is_right=is_right: {"x": weights @ is_right / weights.sum()},
            person,
            person,
            num_resamples=200,
        )["x"]
        assert found is not None
        held += found.low <= 0.8 <= found.high
    assert 180 <= held <= 198


def test_a_figure_that_is_seldom_defined_has_no_interval() -> None:
    # Of two people, one has the only same pair: half of the resamples lack a kind of pairs.
    distances, same = np.array([0.1, 1.0, 1.1]), np.array([True, False, False])
    figures = intervals.VerificationFigures(distances, same, np.array([0, 0, 1]), {})
    found = intervals.bootstrap(figures, np.array([0, 0, 1]), np.array([0, 1, 0]), num_resamples=100)
    assert found["auc"] is None
    with pytest.raises(UserError, match="no pairs to resample"):
        intervals.bootstrap(figures, np.empty(0, np.int64), np.empty(0, np.int64))
