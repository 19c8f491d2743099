"""Other projects' protocols: against loops written straight from their descriptions, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import KFold

from pipeline.config.errors import UserError
from pipeline.evaluate import protocols


def draw(seed: int, per_fold: int, num_folds: int, on_grid: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distances, kinds with both in each fold, folds."""
    rng = np.random.default_rng(seed)
    same = rng.random((num_folds, per_fold)) < 0.5
    same[:, 0], same[:, 1] = True, False
    same = same.ravel()
    distances = np.clip(rng.normal(np.where(same, 1.0, 1.6), 0.4), 0, 4)
    if on_grid:
        distances = rng.choice(protocols.FACENET_GRID[::100], len(same))
    return distances, same, np.repeat(np.arange(num_folds), per_fold)


def loop_val(distances: np.ndarray, same: np.ndarray, fold: np.ndarray, far: float) -> tuple[list, list]:
    vals, fars = [], []
    for number in np.unique(fold):
        others, own = fold != number, fold == number
        rates = [float(np.mean((distances < t)[others & ~same])) for t in protocols.FACENET_GRID]
        threshold = 0.0
        if max(rates) >= far:
            i = max(i for i, rate in enumerate(rates) if rate <= far)
            low, high = protocols.FACENET_GRID[i : i + 2]
            threshold = low + (high - low) * (far - rates[i]) / (rates[i + 1] - rates[i])
        vals.append(float(np.sum((distances < threshold)[own & same])) / float(np.sum(own & same)))
        fars.append(float(np.sum((distances < threshold)[own & ~same])) / float(np.sum(own & ~same)))
    return vals, fars


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    per_fold=st.integers(2, 30),
    num_folds=st.integers(2, 5),
    far=st.sampled_from([0.001, 0.07, 0.3]),
)
def test_facenets_val_equals_the_loop(seed: int, per_fold: int, num_folds: int, far: float) -> None:
    distances, same, fold = draw(seed, per_fold, num_folds, on_grid=False)
    found = protocols.facenet_val_at_far(distances, same, fold, far)
    vals, fars = loop_val(distances, same, fold, far)
    assert found.val.tolist() == vals
    assert found.far.tolist() == fars
    assert (found.mean, found.std, found.far_mean) == (np.mean(vals), np.std(vals), np.mean(fars))


def test_facenets_val_by_hand() -> None:
    # Fold 0 is judged at the threshold of fold 1: its different pairs lie at 1.0 and 2.0, so the rate is 0 up to
    # threshold 1.000, 1/2 from 1.001 on, and half of that halfway between them.
    distances = np.array([0.9, 1.0004, 1.3, 1.0, 2.0, 0.5])
    same = np.array([True, True, False, False, False, True])
    found = protocols.facenet_val_at_far(distances, same, np.array([0, 0, 0, 1, 1, 1]), 0.25)
    assert found.threshold[0] == pytest.approx(1.0005)
    assert found.val.tolist() == [1.0, 1.0]
    assert found.far.tolist() == [0.0, 0.5]


def test_facenets_threshold_is_zero_where_the_rate_is_never_reached() -> None:
    distances, same = np.array([0.1, 4.0, 0.1, 4.0]), np.array([True, False] * 2)
    found = protocols.facenet_val_at_far(distances, same, np.array([0, 0, 1, 1]), 0.5)
    assert found.threshold.tolist() == [0.0, 0.0]
    assert (found.mean, found.far_mean) == (0.0, 0.0)


def loop_facex_zoo(scores: np.ndarray, same: np.ndarray, fold: np.ndarray) -> list[float]:
    accuracies = []
    for number in np.unique(fold):
        train, own = fold != number, fold == number
        low, high = np.min(scores[train]), np.max(scores[train])
        thresholds = low + (high - low) / 1000 * np.array(range(1, 1001))
        gains = []
        for threshold in thresholds:
            fpr = np.sum(scores[train & ~same] > threshold) / np.sum(train & ~same)
            tpr = np.sum(scores[train & same] > threshold) / np.sum(train & same)
            gains.append(tpr - fpr)
        best = thresholds[np.argmax(gains)]
        right = np.sum(scores[own & same] > best) + np.sum(scores[own & ~same] < best)
        accuracies.append(right / np.sum(own))
    return accuracies


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), per_fold=st.integers(2, 20), num_folds=st.integers(2, 10), on_grid=st.booleans())
def test_facex_zoos_accuracy_equals_the_loop(seed: int, per_fold: int, num_folds: int, on_grid: bool) -> None:
    distances, same, fold = draw(seed, per_fold, num_folds, on_grid)
    scores = 1.0 - distances / 2.0
    found = protocols.facex_zoo_accuracy(scores, same, fold)
    expected = loop_facex_zoo(scores, same, fold)
    assert found.accuracy.tolist() == expected
    assert found.mean == np.mean(expected)
    assert found.standard_error == pytest.approx(np.std(expected, ddof=1) / np.sqrt(num_folds))


def test_facex_zoos_accuracy_by_hand() -> None:
    # Fold 0 sees 0.2 and 0.8 in fold 1: the first of the 1,000 steps from 0.2 to 0.8 is best already, 0.2006.
    scores, same = np.array([0.3, 0.2006, 0.8, 0.2]), np.array([True, False, True, False])
    found = protocols.facex_zoo_accuracy(scores, same, np.array([0, 0, 1, 1]))
    assert found.threshold[0] == pytest.approx(0.2006)
    assert found.accuracy[1] == 1.0


def test_a_score_at_the_highest_step_is_not_above_it() -> None:
    # Only at 1.0, the last step, could the same pair be told from the different one below it: it is not above 1.0.
    scores, same = np.array([0.5, 0.5, 0.0, 0.9999, 1.0]), np.array([True, False, False, False, True])
    found = protocols.facex_zoo_accuracy(scores, same, np.array([0, 0, 1, 1, 1]))
    assert found.threshold[0] == pytest.approx(0.001)


@pytest.mark.parametrize("num_pairs", [2, 19, 20, 6000])
def test_folds_are_those_of_kfold(num_pairs: int) -> None:
    num_folds = min(10, num_pairs)
    fold = protocols.consecutive_folds(num_pairs, num_folds)
    for number, (_, own) in enumerate(KFold(num_folds, shuffle=False).split(np.arange(num_pairs))):
        assert np.flatnonzero(fold == number).tolist() == own.tolist()


def test_users_mistakes() -> None:
    nothing, kinds = np.empty(0), np.empty(0, bool)
    two, folds = np.array([True, False]), np.array([0, 1])
    for call in (protocols.facenet_val_at_far, protocols.facex_zoo_accuracy):
        with pytest.raises(UserError, match="at least 2"):
            call(nothing, kinds, np.empty(0, np.int64))
        with pytest.raises(UserError, match="one kind of pairs only"):
            call(np.array([0.1, 0.2]), two, folds)
        with pytest.raises(UserError, match="1 of 2 are not finite"):
            call(np.array([0.1, np.inf]), two, folds)
