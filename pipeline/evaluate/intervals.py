"""How sure a figure is: bootstrap intervals over people, not over pairs.

Pairs that share a person are not independent: one badly recognised person spoils all their pairs. So people are drawn
with replacement, as often as there are, and a pair counts as often as its people were drawn: a pair of one person w
times, a pair of two people w1 · w2 times. For pairs of one person that is the subsets bootstrap (Bolle, Ratha &
Pankanti 2004); for pairs of two, the product weights of the pigeonhole bootstrap (Owen 2007; Fogliato, Patil & Perona
2024 for face recognition). The product errs on the wide side: where each person is in one pair only, intervals of rates
of different pairs come out sqrt(3) times too wide. No bootstrap says anything where there are no errors to draw: a rate
of 0 has the interval 0 to 0, and `pipeline.evaluate.fairness.wilson` says how far from 0 it may be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from pipeline.config.errors import UserError
from pipeline.evaluate.verification import GRID, Bools, Floats, Ints

Figures: TypeAlias = Callable[[Floats], Mapping[str, float]]
"""From the [P] weights of pairs, whole numbers as float64, to named figures; NaN where one is not defined."""

LEVEL = 0.95
NUM_RESAMPLES = 1000

_LEAST_DEFINED = 0.9


@dataclass(frozen=True)
class Interval:
    """A percentile interval."""

    low: float
    high: float


def draw_people(num_people: int, num_resamples: int, seed: int) -> Iterator[Ints]:
    """How often each of `num_people` is drawn, [num_people] int64, for one resample after the other.

    The same seed gives the same draws with any numpy version (`RandomState`'s stream is frozen).
    """
    random = np.random.RandomState(seed)
    for _ in range(num_resamples):
        yield np.bincount(random.randint(num_people, size=num_people), minlength=num_people).astype(np.int64)


def pair_weights(drawn: Ints, left: Ints, right: Ints) -> Floats:
    """[P] float64: how often each pair counts where person i was drawn `drawn[i]` times.

    Args:
        drawn: [I] see `draw_people`.
        left, right: [P] the people of each pair, numbers from 0.
    """
    return np.where(left == right, drawn[left], drawn[left] * drawn[right]).astype(np.float64)


@dataclass(frozen=True)
class Resampled:
    """Figures of all pairs, and of each resample."""

    values: dict[str, float]
    """By name; NaN where a figure is not defined."""
    draws: dict[str, Floats]
    """By name, [num_resamples] float64; NaN where a resample left nothing to measure."""


def resample(
    figures: Figures, left: Ints, right: Ints, *, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> Resampled:
    """Compute figures on all pairs and on resamples of them; the same people and seed give the same resamples.

    Args:
        figures: called once for all pairs and once a resample.
        left, right: [P] the people of each pair, any numbers; the same number for the two where people are not known,
            another for each pair, draws pairs instead.
        num_resamples: 1,000 give the bounds of a 95 % interval to about a tenth of its width.
        seed: of the draws.

    Raises:
        UserError: no pairs.
    """
    if len(left) == 0:
        raise UserError("pairs", "no pairs to resample", "at least one")
    people, numbers = np.unique(np.concatenate((left, right)), return_inverse=True)
    left, right = numbers[: len(left)], numbers[len(left) :]
    values = dict(figures(np.ones(len(left))))
    draws = {name: np.empty(num_resamples) for name in values}
    for number, drawn in enumerate(draw_people(len(people), num_resamples, seed)):
        for name, value in figures(pair_weights(drawn, left, right)).items():
            draws[name][number] = value
    return Resampled(values, draws)


def bootstrap(
    figures: Figures,
    left: Ints,
    right: Ints,
    *,
    num_resamples: int = NUM_RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> dict[str, Interval | None]:
    """Percentile intervals of any figures of pairs; see this module's head for how pairs are drawn.

    Args:
        figures, left, right, num_resamples, seed: as for `resample`.
        level: the share of resamples inside.

    Returns:
        By name; see `percentile_interval`.

    Raises:
        UserError: no pairs.
    """
    resampled = resample(figures, left, right, num_resamples=num_resamples, seed=seed)
    return {name: percentile_interval(values, level) for name, values in resampled.draws.items()}


class VerificationFigures:
    """The figures of verification as a function of the pairs' weights; sorted once, for many resamples.

    With all weights 1 they equal those of `pipeline.evaluate.verification`. Thresholds are chosen anew in each
    resample, so that intervals hold what their choice adds.

    Args:
        distances: [P] squared distances.
        same: [P] the truth.
        fold: [P] fold numbers.
        fars: for TAR at FAR, by the name that figures get.
    """

    def __init__(self, distances: Floats, same: Bools, fold: Ints, fars: Mapping[str, float]) -> None:
        order = np.argsort(distances, kind="stable")
        ordered = distances[order]
        numbers, position = np.unique(fold, return_inverse=True)
        self._num_folds, self._width = len(numbers), len(GRID) + 1
        self._cell = position * self._width + np.searchsorted(GRID, distances, side="right")
        self._order, self._same, self._same_in_order = order, same, same[order]
        self._last_of_tie = np.append(ordered[1:] != ordered[:-1], True)
        self._distances, self._fars = distances, dict(fars)

    def __call__(self, weights: Floats) -> dict[str, float]:
        """`accuracy`, `auc`, `eer`, `d_prime` and the names of `fars`; NaN where resampling left nothing to measure."""
        ordered = weights[self._order]
        accepted_same = np.cumsum(ordered * self._same_in_order)[self._last_of_tie]
        accepted_different = np.cumsum(ordered * ~self._same_in_order)[self._last_of_tie]
        num_same, num_different = accepted_same[-1], accepted_different[-1]
        figures = {"accuracy": self._accuracy(weights)}
        if num_same == 0 or num_different == 0:
            return figures | dict.fromkeys(("auc", "eer", "d_prime", *self._fars), np.nan)
        tar = np.concatenate(([0.0], accepted_same / num_same))
        far = np.concatenate(([0.0], accepted_different / num_different))
        gap = far - (1.0 - tar)
        after = int(np.argmax(gap >= 0))
        part = -gap[after - 1] / (gap[after] - gap[after - 1])
        figures |= {
            "auc": float(np.trapezoid(tar, far)),
            "eer": float(far[after - 1] + part * (far[after] - far[after - 1])),
            "d_prime": self._d_prime(weights),
        }
        for name, rate in self._fars.items():
            allowed = np.floor(rate * num_different + 1e-9)
            figures[name] = float(tar[np.searchsorted(accepted_different, allowed, side="right")])
        return figures

    def _accuracy(self, weights: Floats) -> float:
        size, shape = self._num_folds * self._width, (self._num_folds, self._width)
        same, different = (
            np.bincount(self._cell, weights * kind, minlength=size).reshape(shape) for kind in (self._same, ~self._same)
        )
        total = same.sum(axis=1) + different.sum(axis=1)
        drawn = total > 0
        if np.count_nonzero(drawn) < 2:
            return float("nan")
        correct = np.cumsum(same - different, axis=1)[:, :-1] + different.sum(axis=1, keepdims=True)
        best = np.argmax(correct.sum(axis=0) - correct, axis=1)
        return float(np.mean(correct[np.arange(self._num_folds), best][drawn] / total[drawn]))

    def _d_prime(self, weights: Floats) -> float:
        means, variances = [], []
        for kind in (self._same, ~self._same):
            own, values = weights[kind], self._distances[kind]
            means.append(np.average(values, weights=own))
            variances.append(np.average(np.square(values - means[-1]), weights=own))
        spread = np.sqrt(sum(variances) / 2.0)
        return float(abs(means[0] - means[1]) / spread) if spread > 0.0 else float("nan")


def percentile_interval(values: Floats, level: float = LEVEL) -> Interval | None:
    """The interval that holds the middle `level` of the values of resamples.

    Returns:
        None where more than a tenth of the resamples left the figure undefined. The rest are left out.
    """
    defined = values[np.isfinite(values)]
    if len(defined) < _LEAST_DEFINED * len(values):
        return None
    low, high = np.quantile(defined, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return Interval(float(low), float(high))
