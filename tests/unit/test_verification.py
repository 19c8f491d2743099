"""Verification measures: against a loop written straight from the protocol, and against values computed by hand."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from pipeline.config.errors import UserError
from pipeline.evaluate import verification as v
from pipeline.evaluate.pairs import read_pairs


def loop_fold_accuracy(distances: np.ndarray, same: np.ndarray, fold: np.ndarray) -> tuple[list[float], list[float]]:
    """InsightFace's protocol as its reference writes it: for every fold, try every threshold on all other folds."""
    accuracies, chosen = [], []
    for number in np.unique(fold):
        others, own = fold != number, fold == number
        scores = []
        for threshold in np.arange(0, 4, 0.01):
            predicted = np.less(distances[others], threshold)
            right = np.sum(predicted & same[others]) + np.sum(~predicted & ~same[others])
            scores.append(float(right) / others.sum())
        best = np.arange(0, 4, 0.01)[np.argmax(scores)]
        predicted = np.less(distances[own], best)
        right = np.sum(predicted & same[own]) + np.sum(~predicted & ~same[own])
        accuracies.append(float(right) / own.sum())
        chosen.append(best)
    return accuracies, chosen


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), per_fold=st.integers(1, 30), on_grid=st.booleans())
def test_fold_accuracy_equals_the_loop_to_the_last_digit(seed: int, per_fold: int, on_grid: bool) -> None:
    rng = np.random.default_rng(seed)
    num_folds = int(rng.integers(2, 11))
    same = rng.random(per_fold * num_folds) < 0.5
    distances = np.clip(rng.normal(np.where(same, 1.0, 1.6), 0.4), 0, 4)
    if on_grid:  # exact ties with thresholds: "below", not "at"
        distances = rng.choice(v.GRID, len(same))
    fold = np.repeat(np.arange(num_folds), per_fold)
    result = v.fold_accuracy(distances, same, fold)
    accuracies, thresholds = loop_fold_accuracy(distances, same, fold)
    assert result.accuracy.tolist() == accuracies
    assert result.threshold.tolist() == thresholds
    assert result.mean == float(np.mean(accuracies))
    assert result.std == float(np.std(accuracies))


@pytest.mark.skipif("FACEMILL_TEST_DATA" not in os.environ, reason="FACEMILL_TEST_DATA is not set")
def test_fold_accuracy_equals_the_loop_on_real_photos() -> None:
    """LFW's pairs, embedded as what a small grey picture shows: poor, but real scores with real ties of thresholds."""
    root = Path(os.environ["FACEMILL_TEST_DATA"]) / "lfw"
    pairs = read_pairs(root / "pairs.txt")
    row = {photo: number for number, photo in enumerate(pairs.photos())}
    vectors = []
    for photo in row:
        pixels = cv2.imread(str(root / photo.identity / f"{photo}.jpg"), cv2.IMREAD_GRAYSCALE)
        small = cv2.resize(pixels[60:-60, 60:-60], (12, 12), interpolation=cv2.INTER_AREA).ravel().astype(float)
        vectors.append((small - small.mean()) / np.linalg.norm(small - small.mean()))
    left, right = (np.array([row[getattr(pair, side)] for pair in pairs.pairs]) for side in ("left", "right"))
    same, fold = (np.array([getattr(pair, name) for pair in pairs.pairs]) for name in ("same", "fold"))
    distances = v.squared_distances(np.array(vectors), left, right)
    found = v.fold_accuracy(distances, same, fold)
    assert (found.accuracy.tolist(), found.threshold.tolist()) == loop_fold_accuracy(distances, same, fold)
    assert 0.5 < found.mean < 0.8


def test_fold_accuracy_by_hand() -> None:
    # Fold 1's first perfect threshold is 0.51 (above 0.5, at most 0.9); fold 2's is 1.31.
    distances = np.array([0.5, 0.9, 1.3, 2.0])
    same = np.array([True, False, True, False])
    result = v.fold_accuracy(distances, same, np.array([0, 0, 1, 1]))
    assert result.threshold.tolist() == pytest.approx([1.31, 0.51])
    assert result.accuracy.tolist() == [0.5, 0.5]
    assert (result.mean, result.std) == (0.5, 0.0)


def test_folds_without_pairs_do_not_count() -> None:
    result = v.fold_accuracy(np.array([0.5, 1.5, 0.5]), np.array([True, False, True]), np.array([2, 2, 7]))
    assert result.fold.tolist() == [2, 7]
    assert result.num_pairs.tolist() == [2, 1]


def test_a_pair_at_the_threshold_is_different() -> None:
    assert v.best_threshold(np.array([float(v.GRID[50])]), np.array([True])) == (float(v.GRID[51]), 1.0)
    # From threshold 0 on, everything is "different": the first best is the first of all.
    assert v.best_threshold(np.array([0.0]), np.array([False])) == (0.0, 1.0)


def test_roc_by_hand_with_ties() -> None:
    distances = np.array([0.1, 0.4, 0.4, 0.4, 1.0])
    same = np.array([True, True, False, True, False])
    roc = v.roc_curve(distances, same)
    assert roc.far.tolist() == [0.0, 0.0, 0.5, 1.0]
    assert roc.tar.tolist() == [0.0, 1 / 3, 1.0, 1.0]
    assert roc.threshold.tolist() == [-np.inf, 0.1, 0.4, 1.0]
    # Of 6 combinations, 4 are in order and 2 tie.
    assert v.area_under_curve(roc) == pytest.approx((4 + 0.5 * 2) / 6)
    # Between (0, 1/3) and (0.5, 1): far = 1 - tar at 2/7 of far.
    assert v.equal_error_rate(roc) == pytest.approx(2 / 7)


@pytest.mark.parametrize(
    ("distances", "same", "auc", "eer"),
    [
        ([0.1, 0.2, 1.0, 1.1], [True, True, False, False], 1.0, 0.0),
        ([1.0, 1.1, 0.1, 0.2], [True, True, False, False], 0.0, 1.0),
        ([0.5, 0.5], [True, False], 0.5, 0.5),
    ],
)
def test_auc_and_eer_at_their_ends(distances: list[float], same: list[bool], auc: float, eer: float) -> None:
    roc = v.roc_curve(np.array(distances), np.array(same))
    assert v.area_under_curve(roc) == pytest.approx(auc)
    assert v.equal_error_rate(roc) == pytest.approx(eer)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=2, max_size=60))
def test_auc_equals_sklearn(pairs: list[tuple[int, bool]]) -> None:
    distances = np.array([distance / 2 for distance, _ in pairs])
    same = np.array([kind for _, kind in pairs])
    if same.all() or not same.any():
        with pytest.raises(UserError, match="at least one of each kind"):
            v.roc_curve(distances, same)
        return
    roc = v.roc_curve(distances, same)
    assert v.area_under_curve(roc) == pytest.approx(roc_auc_score(same, -distances))
    assert 0.0 <= v.equal_error_rate(roc) <= 1.0


def test_tar_at_far_by_hand() -> None:
    # Thirty different pairs at 1.0, 1.1 … 3.9; same pairs at 0.5, 0.95, 1.25, 1.5: three may be accepted, up to 1.2.
    distances = np.concatenate((np.arange(30) / 10 + 1.0, [0.5, 0.95, 1.15, 1.5]))
    same = np.arange(34) >= 30
    roc = v.roc_curve(distances, same)
    point = v.true_accept_rate(roc, 0.1)
    assert point is not None
    assert (point.tar, point.far, point.threshold) == (0.75, 0.1, 1.2)
    assert v.true_accept_rate(roc, 0.09) is None


def test_tar_at_far_never_exceeds_the_rate_when_distances_tie() -> None:
    distances = np.array([0.5, 1.0, *[1.0] * 4, *[2.0] * 26])
    same = np.arange(32) < 2
    point = v.true_accept_rate(v.roc_curve(distances, same), 0.1)
    assert point is not None
    # Accepting at 1.0 would let in four of thirty, so only the pair at 0.5 gets in.
    assert (point.tar, point.far) == (0.5, 0.0)


@pytest.mark.parametrize(
    ("far", "needed"), [(1.0, 3), (0.3, 10), (0.1, 30), (0.07, 43), (1e-3, 3000), (1e-4, 30_000), (1e-6, 3_000_000)]
)
def test_the_least_number_of_different_pairs_is_three_over_far(far: float, needed: int) -> None:
    assert v.least_different_pairs(far) == needed
    for count, is_measured in ((needed - 1, False), (needed, True)):
        roc = v.Roc(np.array([0.0, 1.0]), np.array([0.0, 1.0]), np.array([-np.inf, 1.0]), 1, count)
        assert (v.true_accept_rate(roc, far) is not None) == is_measured


@pytest.mark.parametrize("far", [0.0, -0.1, 1.1])
def test_a_rate_that_is_none_is_refused(far: float) -> None:
    with pytest.raises(UserError, match="a rate above 0 and at most 1"):
        v.least_different_pairs(far)


def test_a_threshold_from_elsewhere_by_hand() -> None:
    distances = np.array([0.5, 1.0, 1.5, 0.9, 1.0])
    same = np.array([True, True, True, False, False])
    # Below 1.0, not at it: one of three same pairs and one of two different ones.
    assert v.at_threshold(distances, same, 1.0) == v.AtThreshold(1.0, accuracy=2 / 5, far=0.5, tar=1 / 3)
    assert v.at_threshold(distances[:3], same[:3], v.FACENET_THRESHOLD) == v.AtThreshold(1.1, 2 / 3, None, 2 / 3)
    assert v.at_threshold(distances[3:], same[3:], 0.0) == v.AtThreshold(0.0, 1.0, 0.0, None)
    # The laxest point of a ROC, which accepts at its threshold, carried over: the next larger number.
    point = v.true_accept_rate(v.roc_curve(distances, same), 1.0)
    assert point is None
    assert v.at_threshold(distances, same, float(np.nextafter(1.0, np.inf))).tar == 2 / 3


def test_d_prime_by_hand() -> None:
    distances = np.array([0.0, 1.0, 2.0, 4.0])
    same = np.array([True, True, False, False])
    # Means 0.5 and 3, population variances 0.25 and 1.
    assert v.d_prime(distances, same) == pytest.approx(2.5 / np.sqrt(0.625))
    cosines = 1.0 - distances / 2.0
    assert v.d_prime(cosines, same) == pytest.approx(v.d_prime(distances, same))
    assert v.d_prime(np.array([1.0, 1.0, 2.0]), np.array([True, True, False])) is None
    for one_kind in (np.zeros(4, bool), np.ones(4, bool)):
        assert v.d_prime(distances, one_kind) is None
    assert v.d_prime(np.empty(0), np.empty(0, bool)) is None


@pytest.mark.parametrize("num_different", [30, 70, 1000, 3000])
def test_tar_at_far_uses_every_allowed_accept(num_different: int) -> None:
    """k / n and 0.1 are rounded differently; the k-th accept must still be allowed."""
    distances = np.concatenate((np.arange(num_different) / num_different, [3.0]))
    roc = v.roc_curve(distances, np.arange(num_different + 1) == num_different)
    point = v.true_accept_rate(roc, 0.1)
    assert point is not None
    assert point.far == pytest.approx(0.1, abs=1e-15)


def test_histogram_counts_every_pair_once() -> None:
    histogram = v.score_histogram(np.array([0.0, 4.0, 2.0, 2.0]), np.array([True, False, True, False]))
    assert (histogram.same.sum(), histogram.different.sum()) == (2, 2)
    assert histogram.same[-1] == 1
    assert histogram.different[0] == 1


def test_squared_distances_over_block_borders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(v, "_BLOCK_PAIRS", 3)
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(6, 5))
    left, right = rng.integers(0, 6, 10), rng.integers(0, 6, 10)
    expected = [float(np.sum((embeddings[a] - embeddings[b]) ** 2)) for a, b in zip(left, right, strict=True)]
    assert v.squared_distances(embeddings, left, right).tolist() == expected


def test_squared_distances_between_two_models() -> None:
    old, new = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[0.6, 0.8], [1.0, 0.0], [0.0, -1.0]])
    found = v.squared_distances_between(new, old, np.array([0, 2]), np.array([1, 1]))
    assert found.tolist() == pytest.approx([0.4, 4.0])


def test_empty_and_broken_input() -> None:
    nothing, kinds = np.empty(0), np.empty(0, bool)
    with pytest.raises(UserError, match="at least 2"):
        v.fold_accuracy(nothing, kinds, np.empty(0, np.int64))
    with pytest.raises(UserError, match="no pairs"):
        v.best_threshold(nothing, kinds)
    with pytest.raises(UserError, match="0 same and 0 different"):
        v.roc_curve(nothing, kinds)
    with pytest.raises(UserError, match="no pairs"):
        v.at_threshold(nothing, kinds, 1.0)
    broken = np.array([0.1, np.nan])
    for call in (
        lambda: v.fold_accuracy(broken, np.array([True, False]), np.array([0, 1])),
        lambda: v.roc_curve(broken, np.array([True, False])),
        lambda: v.at_threshold(broken, np.array([True, False]), 1.0),
        lambda: v.d_prime(broken, np.array([True, False])),
    ):
        with pytest.raises(UserError, match="1 of 2 are not finite"):
            call()
