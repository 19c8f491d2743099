"""Other projects' ways to score pairs in folds, by name, for who compares with their published figures.

InsightFace's is `pipeline.evaluate.verification.fold_accuracy`. Published figures cut the pairs into ten consecutive
folds (scikit-learn's `KFold(10, shuffle=False)`), which `consecutive_folds` gives.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.config.errors import UserError
from pipeline.evaluate.verification import Bools, Floats, Ints, number_folds, require_finite

FACENET_GRID: Floats = np.arange(0, 4, 0.001)
"""FaceNet's thresholds on the squared distance for VAL@FAR, made by the same expression."""

_FACEX_ZOO_THRESHOLDS = 1000


@dataclass(frozen=True)
class ValidationRate:
    """FaceNet's VAL@FAR; the arrays have one entry a fold."""

    val: Floats
    """Share of the fold's same pairs that are accepted."""
    far: Floats
    """Share of its different pairs that are accepted, which may exceed the rate asked for: it was set on the others."""
    threshold: Floats
    """Squared distance; a pair below it is accepted."""

    @property
    def mean(self) -> float:
        return float(np.mean(self.val))

    @property
    def std(self) -> float:
        """Population standard deviation over folds."""
        return float(np.std(self.val))

    @property
    def far_mean(self) -> float:
        return float(np.mean(self.far))


@dataclass(frozen=True)
class FaceXZooAccuracy:
    """FaceX-Zoo's accuracy; the arrays have one entry a fold."""

    accuracy: Floats
    threshold: Floats
    """Cosine; a pair above it is accepted, one exactly at it counts as wrong whatever it is."""

    @property
    def mean(self) -> float:
        return float(np.mean(self.accuracy))

    @property
    def standard_error(self) -> float:
        """What FaceX-Zoo prints beside the mean: the sample deviation over folds / sqrt(number of folds)."""
        return float(np.std(self.accuracy, ddof=1) / np.sqrt(len(self.accuracy)))


def consecutive_folds(num_pairs: int, num_folds: int = 10) -> Ints:
    """[num_pairs] fold numbers as `KFold(num_folds, shuffle=False)` deals them: the first folds have one more."""
    sizes = [len(part) for part in np.array_split(np.arange(num_pairs), num_folds)]
    return np.repeat(np.arange(num_folds), sizes)


def facenet_val_at_far(distances: Floats, same: Bools, fold: Ints, far: float = 1e-3) -> ValidationRate:
    """FaceNet's VAL@FAR (Schroff et al. 2015, section 4; `calculate_val` of its public implementation).

    On all other folds, the threshold for a false accept rate of `far` is interpolated linearly between the last one of
    `FACENET_GRID` whose rate is at most `far` and the next; where the rate is never reached, it is 0. The fold is then
    judged at it. (FaceNet calls SciPy's `interp1d(rates, grid, kind="slinear")`, which old releases answer so, while
    newer ones refuse rates that repeat.) For rates without interpolation see `verification.true_accept_rate`.

    Args:
        distances: [P] squared distances.
        same: [P] the truth.
        fold: [P] fold number of each pair.
        far: the rate asked for.

    Raises:
        UserError: distances that are not finite, fewer than two folds, or a fold without pairs of both kinds.
    """
    position, num_folds = _positions(distances, fold)
    num_same = np.bincount(position[same], minlength=num_folds)
    num_different = np.bincount(position[~same], minlength=num_folds)
    _require_both_kinds(num_same, num_different)
    width = len(FACENET_GRID) + 1
    cell = position * width + np.searchsorted(FACENET_GRID, distances, side="right")
    cells = np.bincount(cell[~same], minlength=num_folds * width).reshape(num_folds, width)
    accepted = np.cumsum(cells, axis=1)[:, :-1]
    others = (accepted.sum(axis=0) - accepted) / (num_different.sum() - num_different)[:, None]
    threshold = np.array([float(np.interp(far, rates, FACENET_GRID)) if rates[-1] >= far else 0.0 for rates in others])
    below = distances < threshold[position]
    return ValidationRate(
        val=np.bincount(position[same & below], minlength=num_folds) / num_same,
        far=np.bincount(position[~same & below], minlength=num_folds) / num_different,
        threshold=threshold,
    )


def facex_zoo_accuracy(scores: Floats, same: Bools, fold: Ints) -> FaceXZooAccuracy:
    """FaceX-Zoo's accuracy (Wang et al. 2021; its LFW evaluator).

    Differs from InsightFace's in that thresholds are 1,000 even steps over the range of the other folds' scores, and
    that the one with the largest TPR - FPR is taken, so that both kinds of pairs weigh alike whatever their numbers.

    Args:
        scores: [P] cosines. FaceX-Zoo keeps them as float32; hand them in as such, widened, for its very digits.
        same: [P] the truth.
        fold: [P] fold number of each pair.

    Raises:
        UserError: scores that are not finite, fewer than two folds, or folds whose others lack a kind of pairs.
    """
    position, num_folds = _positions(scores, fold)
    accuracy, thresholds = np.empty(num_folds), np.empty(num_folds)
    for number in range(num_folds):
        others, own = position != number, position == number
        low, high = scores[others].min(), scores[others].max()
        grid = low + (high - low) / _FACEX_ZOO_THRESHOLDS * np.arange(1, _FACEX_ZOO_THRESHOLDS + 1)
        rates = []
        for kind in (others & same, others & ~same):
            ordered = np.sort(scores[kind])
            if len(ordered) == 0:
                raise UserError("pairs", "folds with one kind of pairs only", "same and different ones in the folds")
            rates.append((len(ordered) - np.searchsorted(ordered, grid, side="right")) / len(ordered))
        best = grid[np.argmax(rates[0] - rates[1])]
        right = np.where(same[own], scores[own] > best, scores[own] < best)
        accuracy[number], thresholds[number] = np.count_nonzero(right) / len(right), best
    return FaceXZooAccuracy(accuracy, thresholds)


def _positions(values: Floats, fold: Ints) -> tuple[Ints, int]:
    """Fold numbers without gaps, and how many folds there are."""
    require_finite(values, "scores")
    numbers, position = number_folds(fold)
    return position, len(numbers)


def _require_both_kinds(num_same: Ints, num_different: Ints) -> None:
    if (num_same == 0).any() or (num_different == 0).any():
        raise UserError("pairs", "a fold with one kind of pairs only", "same and different pairs in each fold")
