"""Whether one model is better than another on the same pairs, or was only luckier."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.config.errors import UserError
from pipeline.evaluate.intervals import (
    LEVEL,
    NUM_RESAMPLES,
    Figures,
    Interval,
    Resampled,
    percentile_interval,
    resample,
)
from pipeline.evaluate.verification import Bools, Ints

_EXACT_UP_TO = 1000
"""Discordant pairs; beyond, the normal curve is as good."""


@dataclass(frozen=True)
class McNemar:
    """Pairs that only one of two models judges rightly."""

    only_first: int
    only_second: int
    p_value: float
    """Two-sided: how often such a difference, or a larger one, arises between models that are equally good."""
    method: Literal["exact", "chi2"]


@dataclass(frozen=True)
class Difference:
    """A figure of the second model minus that of the first."""

    value: float
    interval: Interval | None
    """None where resampling seldom left the figure defined."""

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.interval is not None and not self.interval.low <= 0.0 <= self.interval.high


def mcnemar(first_is_right: Bools, second_is_right: Bools) -> McNemar:
    """McNemar's test (McNemar 1947): of the pairs on which the models differ, is each right on half?

    The exact binomial test for up to 1,000 such pairs; the chi-square test with continuity correction (Edwards 1948)
    beyond. Both take pairs as independent; where people are in many pairs, trust `paired_difference` more.

    Args:
        first_is_right, second_is_right: [P] whether each model judges the pair rightly, at a threshold of its own.

    Raises:
        UserError: no pairs.
    """
    if len(first_is_right) == 0:
        raise UserError("pairs", "no pairs", "at least one")
    only_first = int(np.count_nonzero(first_is_right & ~second_is_right))
    only_second = int(np.count_nonzero(second_is_right & ~first_is_right))
    total, fewer = only_first + only_second, min(only_first, only_second)
    if total <= _EXACT_UP_TO:
        tail = sum(math.comb(total, k) for k in range(fewer + 1))
        return McNemar(only_first, only_second, min(1.0, 2 * tail / 2**total), "exact")
    statistic = max(abs(only_first - only_second) - 1, 0) ** 2 / total
    return McNemar(only_first, only_second, math.erfc(math.sqrt(statistic / 2.0)), "chi2")


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number (Holm 1979): below 0.05 in any of them with a chance of at most 0.05.

    The k-th smallest of m is multiplied by m - k + 1, is at least as large as those before it, and at most 1.
    """
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected


def differences(first: Resampled, second: Resampled, level: float = LEVEL) -> dict[str, Difference]:
    """Differences of all figures of two models, with intervals.

    Args:
        first, second: figures of the same pairs and people, resampled with the same seed: in each resample both
            models meet the same people.
        level: of the intervals.

    Raises:
        UserError: figures of other names.
    """
    if first.values.keys() != second.values.keys():
        found, expected = sorted(second.values), sorted(first.values)
        raise UserError("figures", f"{found} of the second model", f"{expected}, as of the first")
    return {
        name: Difference(
            second.values[name] - value, percentile_interval(second.draws[name] - first.draws[name], level)
        )
        for name, value in first.values.items()
    }


def paired_difference(
    first: Figures,
    second: Figures,
    left: Ints,
    right: Ints,
    *,
    num_resamples: int = NUM_RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> dict[str, Difference]:
    """`differences` of two models' figures as functions of the pairs' weights.

    Args:
        first, second: figures of the same pairs in the same order, as `intervals.VerificationFigures`.
        left, right: [P] the people of each pair, as for `intervals.resample`.
        num_resamples, level, seed: as for `intervals.bootstrap`.

    Raises:
        UserError: no pairs, or figures of other names.
    """
    resampled = [resample(one, left, right, num_resamples=num_resamples, seed=seed) for one in (first, second)]
    return differences(resampled[0], resampled[1], level)
