"""Error rates of the groups that a CSV file of pairs names, as a section of the result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Literal

from pipeline.evaluate import fairness
from pipeline.evaluate.grouped_pairs import Groups
from pipeline.evaluate.intervals import NUM_RESAMPLES
from pipeline.evaluate.result_sections import Fairness, GroupDisparity, GroupErrors, Grouping, GroupRate
from pipeline.evaluate.run import ScoredPairs

_CHOSEN_HERE = "the best threshold on these very pairs, so a little optimistic"
_CARRIED = "the best threshold of another set"


def measure_groups(
    scored: ScoredPairs,
    groups: Mapping[str, Groups],
    threshold: float,
    *,
    is_carried: bool,
    knows_people: bool,
    num_resamples: int = NUM_RESAMPLES,
) -> Fairness:
    """FMR and FNMR by each column of groups.

    Args:
        scored: measured pairs.
        groups: by name, the groups of all pairs of the list, dropped ones included; pairs with an empty one are left
            out.
        threshold: squared distance, for all groups the same.
        is_carried: it comes from another set.
        knows_people: intervals are over people; else over pairs.
        num_resamples: of the intervals.
    """
    left, right = scored.people(knows_people)
    groupings = []
    for name, of_pairs in groups.items():
        sides = of_pairs.at(scored.place)
        known = (sides[0] != "") & (sides[1] != "")
        rates = []
        if known.any():
            rates = fairness.group_rates(
                scored.distances[known],
                scored.same[known],
                sides[0][known].tolist(),
                sides[1][known].tolist(),
                threshold,
                (left[known], right[known]),
                num_resamples=num_resamples,
            )
        groupings.append(
            Grouping(
                name=name,
                rates=[GroupErrors(groups=one.groups, fmr=_rate(one.fmr), fnmr=_rate(one.fnmr)) for one in rates],
                fmr=_disparity(rates, "fmr"),
                fnmr=_disparity(rates, "fnmr"),
            )
        )
    chosen, unit = _CARRIED if is_carried else _CHOSEN_HERE, "people" if knows_people else "pairs"
    return Fairness(
        protocol=f"one threshold for all groups: {chosen}; 95 % intervals over {unit}",
        threshold=threshold,
        groupings=groupings,
    )


def _rate(rate: fairness.Rate | None) -> GroupRate | None:
    if rate is None:
        return None
    return GroupRate(
        errors=rate.errors,
        trials=rate.trials,
        value=rate.value,
        low=rate.interval.low,
        high=rate.interval.high,
        method=rate.method,
    )


def _disparity(rates: list[fairness.GroupRates], measure: Literal["fmr", "fnmr"]) -> GroupDisparity | None:
    found = fairness.disparity(rates, measure)
    return None if found is None else GroupDisparity(**asdict(found))
