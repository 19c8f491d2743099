"""Error rates of groups of people at one threshold, how sure they are, and how far apart.

FMR is the share of different pairs that are accepted, FNMR the share of same pairs that are rejected (ISO/IEC 19795-1).
A pair of groups has rates as a group has: people who are mistaken for each other are mostly of one group, but it is
for the data to say (Grother, Ngan & Hanaoka 2019, NISTIR 8280).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np

from pipeline.config.errors import UserError
from pipeline.evaluate.intervals import LEVEL, NUM_RESAMPLES, Interval, bootstrap
from pipeline.evaluate.verification import Bools, Floats, Ints


@dataclass(frozen=True)
class Rate:
    """Errors among trials."""

    errors: int
    trials: int
    value: float
    interval: Interval
    method: Literal["wilson", "bootstrap"]
    """Of the interval. Where resampling cannot change the rate (no trial or every one is an error, or all pairs are of
    the same people), Wilson's is given."""


@dataclass(frozen=True)
class GroupRates:
    """The rates of pairs of which one photo is of one group and one of the other."""

    groups: tuple[str, str]
    """In alphabetical order; the same twice for pairs within a group."""
    fmr: Rate | None
    """None without different pairs."""
    fnmr: Rate | None
    """None without same pairs."""


@dataclass(frozen=True)
class Disparity:
    """The worst and the best of some rates."""

    worst: tuple[str, str]
    worst_rate: float
    best: tuple[str, str]
    best_rate: float
    ratio: float | None
    """Worst / best; None where the best is 0: more pairs are needed to tell them apart."""


def wilson(errors: int, trials: int, level: float = LEVEL) -> Interval:
    """Wilson's score interval of a share (Wilson 1927): not empty even without errors. Trials count as independent.

    Raises:
        UserError: no trials.
    """
    if trials == 0:
        raise UserError("trials", "none", "at least one")
    z = NormalDist().inv_cdf((1.0 + level) / 2.0)
    share, weight = errors / trials, 1.0 + z * z / trials
    centre = share + z * z / (2.0 * trials)
    half = z * math.sqrt(share * (1.0 - share) / trials + z * z / (4.0 * trials * trials))
    # Without errors the lower end is 0, which the difference of two equal numbers may miss by rounding.
    low = 0.0 if errors == 0 else (centre - half) / weight
    return Interval(low, 1.0 if errors == trials else (centre + half) / weight)


def group_rates(
    distances: Floats,
    same: Bools,
    left_group: Sequence[str],
    right_group: Sequence[str],
    threshold: float,
    people: tuple[Ints, Ints] | None = None,
    *,
    level: float = LEVEL,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> list[GroupRates]:
    """FMR and FNMR of each group and pair of groups that has pairs, in alphabetical order.

    Args:
        distances: [P] squared distances; below `threshold`, a pair is accepted.
        same: [P] the truth.
        left_group, right_group: [P] the groups of the two photos.
        threshold: one for all, best chosen on other data.
        people: [P] and [P] who is on the photos, for intervals by resampling people (`pipeline.evaluate.intervals`);
            None for Wilson's, which are too narrow where people are in several pairs.
        level, num_resamples, seed: of the intervals.

    Raises:
        UserError: no pairs, or a distance that is not finite.
    """
    if len(distances) == 0:
        raise UserError("pairs", "no pairs", "at least one")
    if not np.isfinite(distances).all():
        raise UserError("distances", f"{int(np.count_nonzero(~np.isfinite(distances)))} are not finite", "finite ones")
    names, numbers = np.unique(np.array([left_group, right_group], object).astype(str), return_inverse=True)
    numbers = np.sort(numbers.reshape(2, -1), axis=0)
    cells, cell = np.unique(numbers[0] * len(names) + numbers[1], return_inverse=True)
    is_error = (distances < threshold) != same
    found = []
    for number, code in enumerate(cells.tolist()):
        rates = []
        for kind in (~same, same):
            chosen = np.flatnonzero((cell == number) & kind)
            ends = None if people is None else (people[0][chosen], people[1][chosen])
            rates.append(_rate(is_error[chosen], ends, level, num_resamples, seed) if len(chosen) else None)
        groups = (str(names[code // len(names)]), str(names[code % len(names)]))
        found.append(GroupRates(groups, fmr=rates[0], fnmr=rates[1]))
    return found


def disparity(rates: Sequence[GroupRates], measure: Literal["fmr", "fnmr"], *, across: bool = True) -> Disparity | None:
    """The worst and the best group or pair of groups, and the ratio of their rates (NISTIR 8280's max / min).

    Of equal rates, the one with more trials is worst, and best: it says more.

    Args:
        rates: see `group_rates`.
        measure: which rate.
        across: count pairs of two groups, too.

    Returns:
        None where fewer than two have the rate.
    """
    known = [
        (rate.value, rate.trials, one.groups)
        for one in rates
        if (rate := getattr(one, measure)) is not None and (across or one.groups[0] == one.groups[1])
    ]
    if len(known) < 2:
        return None
    worst = max(known, key=lambda rate: (rate[0], rate[1]))
    best = min(known, key=lambda rate: (rate[0], -rate[1]))
    return Disparity(worst[2], worst[0], best[2], best[0], worst[0] / best[0] if best[0] > 0.0 else None)


def _rate(is_error: Bools, people: tuple[Ints, Ints] | None, level: float, num_resamples: int, seed: int) -> Rate:
    errors, trials = int(np.count_nonzero(is_error)), len(is_error)
    if people is not None and 0 < errors < trials:

        def share(weights: Floats) -> dict[str, float]:
            total = weights.sum()
            return {"rate": float(weights @ is_error / total) if total > 0.0 else math.nan}

        resampled = bootstrap(share, *people, num_resamples=num_resamples, level=level, seed=seed)["rate"]
        # Without width, all pairs are of the same people, or everybody has one share: that is no knowledge of others.
        if resampled is not None and resampled.low < resampled.high:
            return Rate(errors, trials, errors / trials, resampled, "bootstrap")
    return Rate(errors, trials, errors / trials, wilson(errors, trials, level), "wilson")
