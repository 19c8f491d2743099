"""Whether one model is better than another on the same pairs, or was only luckier."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.config.errors import UserError
from pipeline.evaluate.intervals import LEVEL, NUM_RESAMPLES, Figures, Interval, bootstrap
from pipeline.evaluate.verification import Bools, Floats, Ints

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
    statistic = (abs(only_first - only_second) - 1) ** 2 / total
    return McNemar(only_first, only_second, math.erfc(math.sqrt(max(statistic, 0.0) / 2.0)), "chi2")


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
    """Differences of all figures that both models have, with intervals: in each resample both meet the same people.

    Args:
        first, second: figures of the same pairs in the same order, as `intervals.VerificationFigures`.
        left, right: [P] the people of each pair, as for `intervals.bootstrap`.
        num_resamples, level, seed: as there.

    Raises:
        UserError: no pairs, or figures of other names.
    """

    def differences(weights: Floats) -> dict[str, float]:
        before, after = first(weights), second(weights)
        if before.keys() != after.keys():
            raise UserError("figures", f"{sorted(after)} of the second model", f"{sorted(before)}, as of the first")
        return {name: after[name] - before[name] for name in before}

    found = bootstrap(differences, left, right, num_resamples=num_resamples, level=level, seed=seed)
    values = differences(np.ones(len(left)))
    return {name: Difference(values[name], interval) for name, interval in found.items()}
