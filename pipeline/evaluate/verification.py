"""Measures of face verification: "do these two photos show the same person?".

Everything here is a pure function of squared distances between L2-normalised embeddings and of the truth about each
pair. Squared distance d and cosine c say the same: d = 2 - 2c. A smaller distance means "more alike".
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.config.errors import UserError

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

GRID: Floats = np.arange(0, 4, 0.01)
"""InsightFace's thresholds on the squared distance, made by the same expression so that every bit agrees."""

FACENET_THRESHOLD = 1.1
"""FaceNet's fixed threshold on the squared distance (Schroff et al. 2015, figure 1)."""

PAIRS_PER_ACCEPT = 3
"""Different pairs it takes for a rate, in units of 1/FAR.

By the rule of three (Jovanovic & Levy 1997; ISO/IEC 19795-1) a rate is below FAR with 95 % confidence when 3/FAR
independent pairs hold no false accept. LFW's 3,000 different pairs then carry a rate of 1e-3, IJB-B's 8 and IJB-C's
15.6 million one of 1e-6, as these sets are reported.
"""

FAR_TARGETS = {"1e-1": 1e-1, "1e-2": 1e-2, "1e-3": 1e-3, "1e-4": 1e-4, "1e-5": 1e-5, "1e-6": 1e-6}
"""The rates that results report TAR at, by the name they have there."""

_BLOCK_PAIRS = 65_536
_NUM_BINS = 100
_DRAWN_POINTS = 1000


@dataclass(frozen=True)
class FoldAccuracy:
    """Cross-validated accuracy; the arrays have one entry a fold."""

    fold: Ints
    """The folds' numbers as they stand in the pair list; folds without a pair do not occur."""
    num_pairs: Ints
    accuracy: Floats
    threshold: Floats
    """Chosen on the other folds; squared distance."""

    @property
    def mean(self) -> float:
        return float(np.mean(self.accuracy))

    @property
    def std(self) -> float:
        """Population standard deviation over folds, as InsightFace prints it."""
        return float(np.std(self.accuracy))


@dataclass(frozen=True)
class Roc:
    """Operating points from strict to lax, one for each distinct distance, after the point that accepts nothing."""

    far: Floats
    """False accept rate: share of different pairs that are accepted."""
    tar: Floats
    """True accept rate: share of same pairs that are accepted."""
    threshold: Floats
    """A pair is accepted when its squared distance is at most this; the first is -inf."""
    num_same: int
    num_different: int


@dataclass(frozen=True)
class OperatingPoint:
    """The laxest operating point whose FAR does not exceed the one asked for."""

    far: float
    tar: float
    threshold: float


@dataclass(frozen=True)
class AtThreshold:
    """What one threshold does that was not chosen on these pairs. A pair is accepted below it, as in `GRID`."""

    threshold: float
    """Squared distance."""
    accuracy: float
    """Share of all pairs judged rightly."""
    far: float | None
    """Share of different pairs accepted (false match rate); None without different pairs."""
    tar: float | None
    """Share of same pairs accepted (1 - false non-match rate); None without same pairs."""


@dataclass(frozen=True)
class ScoreHistogram:
    """Counts of cosine scores between `edges[i]` and `edges[i + 1]`, for both kinds of pairs."""

    edges: Floats
    same: Ints
    different: Ints


def squared_distances(embeddings: Floats, left: Ints, right: Ints) -> Floats:
    """Squared Euclidean distance of each pair, in blocks so that memory stays bounded.

    Args:
        embeddings: [N, D] float64, L2-normalised rows.
        left, right: [P] row numbers.

    Returns:
        [P] float64 between 0 and 4.
    """
    return squared_distances_between(embeddings, embeddings, left, right)


def squared_distances_between(left_embeddings: Floats, right_embeddings: Floats, left: Ints, right: Ints) -> Floats:
    """As `squared_distances`, but the two sides have matrices of their own, [N, D] and [M, D] float64."""
    distances = np.empty(len(left), np.float64)
    for start in range(0, len(left), _BLOCK_PAIRS):
        part = slice(start, start + _BLOCK_PAIRS)
        difference = left_embeddings[left[part]] - right_embeddings[right[part]]
        distances[part] = np.sum(np.square(difference), axis=1)
    return distances


def cosine(distance: float) -> float:
    """The cosine of two unit vectors at this squared distance."""
    return 1.0 - distance / 2.0


def squared_distance(cosines: Floats) -> Floats:
    """[P] squared distances of unit vectors with these cosines."""
    return 2.0 - 2.0 * cosines


def fold_accuracy(distances: Floats, same: Bools, fold: Ints) -> FoldAccuracy:
    """Accuracy by InsightFace's protocol: each fold is judged at the threshold that is best on all the others.

    A pair is called "same" when its distance is below (not at) the threshold; thresholds are `GRID`; of several
    equally good ones the first counts. Folds are those of the pair list, never shuffled.

    Args:
        distances: [P] squared distances.
        same: [P] the truth.
        fold: [P] fold number of each pair.

    Raises:
        UserError: a distance is not finite, or fewer than two folds hold pairs.
    """
    require_finite(distances)
    numbers, position = number_folds(fold)
    correct = _correct_counts(distances, same, position, len(numbers))
    num_pairs = np.bincount(position, minlength=len(numbers))
    # Counts over one and the same denominator order as accuracies do, and integers have no rounding to break ties.
    best = np.argmax(correct.sum(axis=0) - correct, axis=1)
    accuracy = correct[np.arange(len(numbers)), best] / num_pairs
    return FoldAccuracy(fold=numbers, num_pairs=num_pairs, accuracy=accuracy, threshold=GRID[best])


def best_threshold(distances: Floats, same: Bools) -> tuple[float, float]:
    """The first threshold of `GRID` that is best on all pairs, and the accuracy there (optimistic: nothing held out).

    Raises:
        UserError: no pairs, or a distance that is not finite.
    """
    require_finite(distances)
    if len(distances) == 0:
        raise UserError("pairs", "no pairs", "at least one")
    correct = _correct_counts(distances, same, np.zeros(len(distances), np.int64), 1)[0]
    best = int(np.argmax(correct))
    return float(GRID[best]), float(correct[best] / len(distances))


def at_threshold(distances: Floats, same: Bools, threshold: float) -> AtThreshold:
    """Judge all pairs at a threshold from elsewhere: a fixed one, or the best one of another set.

    To carry a threshold from one set to another, hand in `best_threshold(…)[0]` of the first and the pairs of the
    second; `true_accept_rate(…).threshold` is inclusive, so the next larger number is what is to be handed in:
    `np.nextafter(threshold, np.inf)`.

    Raises:
        UserError: no pairs, or a distance that is not finite.
    """
    require_finite(distances)
    if len(distances) == 0:
        raise UserError("pairs", "no pairs", "at least one")
    accepted = distances < threshold
    rates = [float(np.mean(accepted[kind])) if kind.any() else None for kind in (~same, same)]
    return AtThreshold(threshold, accuracy=float(np.mean(accepted == same)), far=rates[0], tar=rates[1])


def d_prime(distances: Floats, same: Bools) -> float | None:
    """d': how far apart the scores of same and different pairs lie, in units of their spread (Daugman 2000, eq. 1).

    |mean of same - mean of different| / sqrt((variance of same + variance of different) / 2), with population
    variances. Cosine and squared distance give the same figure, for one is a linear function of the other.

    Returns:
        None where it is not defined: a kind of pairs is missing, or neither kind has any spread.

    Raises:
        UserError: a distance is not finite.
    """
    require_finite(distances)
    if same.all() or not same.any():
        return None
    spread = math.sqrt((np.var(distances[same]) + np.var(distances[~same])) / 2.0)
    gap = abs(float(np.mean(distances[same]) - np.mean(distances[~same])))
    return gap / spread if spread > 0.0 else None


def roc_curve(distances: Floats, same: Bools) -> Roc:
    """All operating points; pairs at equal distances move together.

    Raises:
        UserError: one of the two kinds of pairs is missing, or a distance is not finite.
    """
    require_finite(distances)
    num_same = int(np.count_nonzero(same))
    num_different = len(same) - num_same
    if num_same == 0 or num_different == 0:
        raise UserError("pairs", f"{num_same} same and {num_different} different pairs", "at least one of each kind")
    order = np.argsort(distances, kind="stable")
    ordered = distances[order]
    last_of_tie = np.append(ordered[1:] != ordered[:-1], True)
    accepted_same = np.cumsum(same[order])[last_of_tie]
    accepted = np.flatnonzero(last_of_tie) + 1
    return Roc(
        far=np.concatenate(([0.0], (accepted - accepted_same) / num_different)),
        tar=np.concatenate(([0.0], accepted_same / num_same)),
        threshold=np.concatenate(([-np.inf], ordered[last_of_tie])),
        num_same=num_same,
        num_different=num_different,
    )


def thin_roc(roc: Roc) -> Ints:
    """Which points a drawing needs: all, or about a thousand spread along the curve, both ends included."""
    level = np.arange(len(roc.far))
    if len(level) <= _DRAWN_POINTS:
        return level
    # Half of the points evenly on the logarithm of FAR, which is how the curve is read, half evenly on both rates.
    log_far = np.log10(np.maximum(roc.far, 0.5 / roc.num_different))
    along = np.cumsum(np.abs(np.diff(log_far, prepend=log_far[0])) / -log_far[0] + np.diff(roc.tar, prepend=0.0))
    wanted = np.linspace(0.0, along[-1], _DRAWN_POINTS)
    return np.unique(np.concatenate(([0], np.searchsorted(along, wanted).clip(0, len(level) - 1), [len(level) - 1])))


def area_under_curve(roc: Roc) -> float:
    """AUC: the chance that a same pair scores above a different pair, ties counting one half."""
    return float(np.trapezoid(roc.tar, roc.far))


def equal_error_rate(roc: Roc) -> float:
    """EER: where false accepts and false rejects are equally frequent, linear between operating points."""
    gap = roc.far - (1.0 - roc.tar)
    after = int(np.argmax(gap >= 0))
    before = after - 1  # exists: the first point accepts nothing, so its gap is -1
    part = -gap[before] / (gap[after] - gap[before])
    return float(roc.far[before] + part * (roc.far[after] - roc.far[before]))


def least_different_pairs(far: float) -> int:
    """The least number of different pairs to measure a rate of `far` on: `PAIRS_PER_ACCEPT` / far, rounded up.

    Args:
        far: above 0, at most 1.
    """
    if not 0.0 < far <= 1.0:
        raise UserError("FAR", f"{far:g}", "a rate above 0 and at most 1")
    # Rounded first: 3 / 0.1 must not become 30.000000000000004 and then 31.
    return math.ceil(round(PAIRS_PER_ACCEPT / far, 6))


def true_accept_rate(roc: Roc, far: float) -> OperatingPoint | None:
    """TAR at the laxest operating point whose FAR is at most `far`, never interpolated.

    Returns:
        None when there are fewer than `least_different_pairs(far)` different pairs: the rate would be made up.
    """
    if roc.num_different < least_different_pairs(far):
        return None
    # A whole number of accepts at exactly the rate asked for must not be lost to rounding (0.1 is no binary fraction).
    allowed = np.floor(far * roc.num_different + 1e-9)
    place = int(np.searchsorted(np.rint(roc.far * roc.num_different), allowed, side="right")) - 1
    return OperatingPoint(far=float(roc.far[place]), tar=float(roc.tar[place]), threshold=float(roc.threshold[place]))


def score_histogram(distances: Floats, same: Bools) -> ScoreHistogram:
    """Histograms of the cosine over its whole range, -1 to 1."""
    edges = np.linspace(-1.0, 1.0, _NUM_BINS + 1)
    scores = np.clip(1.0 - distances / 2.0, -1.0, 1.0)
    counts = [np.histogram(scores[kind], bins=edges)[0].astype(np.int64) for kind in (same, ~same)]
    return ScoreHistogram(edges=edges, same=counts[0], different=counts[1])


def _correct_counts(distances: Floats, same: Bools, position: Ints, num_folds: int) -> Ints:
    """[num_folds, len(GRID)]: how many pairs of each fold each threshold judges rightly.

    A pair's number of thresholds that are <= its distance says from which threshold on it is called "same", so one
    histogram and running sums replace the loop over thresholds, without any arithmetic on distances.
    """
    width = len(GRID) + 1
    cell = position * width + np.searchsorted(GRID, distances, side="right")
    size = num_folds * width
    same_cells = np.bincount(cell[same], minlength=size).reshape(num_folds, width)
    different_cells = np.bincount(cell[~same], minlength=size).reshape(num_folds, width)
    accepted_same = np.cumsum(same_cells, axis=1)[:, :-1]
    accepted_different = np.cumsum(different_cells, axis=1)[:, :-1]
    return accepted_same + different_cells.sum(axis=1, keepdims=True) - accepted_different


def number_folds(fold: Ints) -> tuple[Ints, Ints]:
    """The numbers of the folds, ascending, and for each pair the place of its fold's among them.

    Raises:
        UserError: fewer than two folds hold pairs.
    """
    numbers, position = np.unique(fold, return_inverse=True)
    if len(numbers) < 2:
        raise UserError("pairs", f"{len(numbers)} fold(s) with pairs", "at least 2, one to judge by the others")
    return numbers, position


def require_finite(values: Floats, name: str = "distances") -> None:
    """See that no pair's value is NaN or infinite.

    Raises:
        UserError: some are.
    """
    if not np.isfinite(values).all():
        number = int(np.count_nonzero(~np.isfinite(values)))
        raise UserError(name, f"{number} of {len(values)} are not finite", "finite embeddings")
