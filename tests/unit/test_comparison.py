"""Two models on the same pairs: McNemar by hand and against enumeration, paired intervals, compatibility."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from pipeline.config.errors import UserError
from pipeline.evaluate import comparison
from pipeline.evaluate.compatibility import Compatibility, compatibility
from pipeline.evaluate.intervals import Interval, VerificationFigures


def answers(only_first: int, only_second: int, both: int = 5, none: int = 2) -> tuple[np.ndarray, np.ndarray]:
    first = [True] * only_first + [False] * only_second + [True] * both + [False] * none
    second = [False] * only_first + [True] * only_second + [True] * both + [False] * none
    return np.array(first), np.array(second)


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 0), (1, 0), (3, 3), (2, 8), (10, 1)])
def test_mcnemar_equals_counting_all_outcomes(only_first: int, only_second: int) -> None:
    total, fewer = only_first + only_second, min(only_first, only_second)
    outcomes = [sum(coins) for coins in product((0, 1), repeat=total)]
    extreme = sum(heads <= fewer or heads >= total - fewer for heads in outcomes) / len(outcomes)
    found = comparison.mcnemar(*answers(only_first, only_second))
    assert (found.only_first, found.only_second, found.method) == (only_first, only_second, "exact")
    assert found.p_value == pytest.approx(extreme)


def test_mcnemar_of_many_pairs() -> None:
    """(|580 - 500| - 1)² / 1080 = 5.779, whose tail in the chi-square distribution of one degree is 0.0162."""
    found = comparison.mcnemar(*answers(580, 500))
    assert found.method == "chi2"
    assert found.p_value == pytest.approx(0.0162, abs=1e-4)
    # Where the method changes, both agree.
    exact = comparison.mcnemar(*answers(530, 470))
    beyond = comparison.mcnemar(*answers(531, 471))
    assert (exact.method, beyond.method) == ("exact", "chi2")
    assert exact.p_value == pytest.approx(beyond.p_value, abs=2e-3)
    # a tie is what equal models are most likely to give
    tie = comparison.mcnemar(*answers(501, 501))
    assert (tie.method, tie.p_value) == ("chi2", 1.0)
    with pytest.raises(UserError, match="no pairs"):
        comparison.mcnemar(np.empty(0, bool), np.empty(0, bool))


def figures(distances: np.ndarray, same: np.ndarray, fold: np.ndarray) -> VerificationFigures:
    return VerificationFigures(distances, same, fold, {})


def test_paired_difference_is_surer_than_two_intervals() -> None:
    """The second model is a little better on every pair: too little for intervals of its own, clear when paired."""
    rng = np.random.default_rng(0)
    same, fold = np.tile([True, False], 300), np.arange(600) % 10
    left = rng.integers(0, 80, 600)
    right = np.where(same, left, (left + 1) % 80)
    base = np.clip(rng.normal(np.where(same, 1.2, 1.6), 0.35), 0, 4)
    first, second = figures(base, same, fold), figures(base - np.where(same, 0.05, -0.05), same, fold)
    found = comparison.paired_difference(first, second, left, right, num_resamples=200)
    assert set(found) == {"accuracy", "auc", "eer", "d_prime"}
    ones = np.ones(600)
    assert found["auc"].value == pytest.approx(second(ones)["auc"] - first(ones)["auc"])
    assert found["auc"].is_clear
    assert found["auc"].interval is not None
    assert found["auc"].interval.low > 0
    equal = comparison.paired_difference(first, first, left, right, num_resamples=20)["auc"]
    assert equal == comparison.Difference(0.0, Interval(0.0, 0.0))
    assert not equal.is_clear
    assert not comparison.Difference(1.0, None).is_clear


def test_figures_of_other_names_are_refused() -> None:
    ends = np.array([0, 1])
    with pytest.raises(UserError, match=r"figures: \['b'\] of the second model; expected \['a'\]"):
        comparison.paired_difference(lambda _: {"a": 1.0}, lambda _: {"b": 1.0}, ends, ends)


def test_compatibility_by_hand() -> None:
    """Forty photos of twenty people on a circle; the new model turns everybody, a little or by half a circle."""
    rng = np.random.default_rng(0)
    person = np.repeat(np.arange(20), 2)

    def embed(noise: float, turn: float) -> np.ndarray:
        radians = person * 2 * np.pi / 20 + turn + rng.normal(0, noise, 40)
        return np.stack((np.cos(radians), np.sin(radians)), axis=1)

    old, new, turned = embed(0.2, 0.0), embed(0.01, 0.0), embed(0.01, np.pi)
    query, gallery = (part.ravel() for part in np.meshgrid(np.arange(0, 40, 2), np.arange(1, 40, 2)))
    same = person[query] == person[gallery]
    found = compatibility(old, new, query, gallery, same, far=0.01)
    assert found.new_new == 1.0
    assert found.old_old < found.new_old < found.new_new
    assert found.is_compatible
    assert found.update_gain is not None
    assert 0 < found.update_gain < 1
    broken = compatibility(old, turned, query, gallery, same, far=0.01)
    assert not broken.is_compatible
    assert broken.new_new == 1.0
    assert compatibility(new, old, query, gallery, same, far=0.01).update_gain is None


def test_queries_are_the_new_models_and_the_gallery_is_the_old_ones() -> None:
    """The old model is hopeless on the even rows, which are the queries, and perfect on the odd ones."""
    new = np.repeat(np.eye(20), 2, axis=0)
    old = new.copy()
    old[::2] = np.roll(new[::2], 1, axis=0)
    query, gallery = (part.ravel() for part in np.meshgrid(np.arange(0, 40, 2), np.arange(1, 40, 2)))
    found = compatibility(old, new, query, gallery, query // 2 == gallery // 2, far=0.01)
    assert (found.old_old, found.new_old, found.new_new) == (0.0, 1.0, 1.0)
    assert found.update_gain == 1.0


def test_update_gain_by_hand() -> None:
    assert Compatibility(1e-3, old_old=0.5, new_old=0.6, new_new=0.9).update_gain == pytest.approx(0.25)
    assert not Compatibility(1e-3, old_old=0.5, new_old=0.5, new_new=0.5).is_compatible
    assert Compatibility(1e-3, old_old=0.5, new_old=0.5, new_new=0.5).update_gain is None


def test_mistakes_in_compatibility() -> None:
    vectors, ends, same = np.eye(4), np.array([0, 1]), np.array([True, False])
    with pytest.raises(UserError, match=r"new: embeddings \[4, 3\]; expected \[4, 4\]"):
        compatibility(vectors, vectors[:, :3], ends, ends, same)
    with pytest.raises(UserError, match=r"pairs: 1 different ones; expected 3,000 for a FAR of 0.001"):
        compatibility(vectors, vectors, ends, ends, same)
    with pytest.raises(UserError, match="at least one of each kind"):
        compatibility(vectors, vectors, ends, ends, np.array([True, True]))
