"""The best setting against the recipe's default, each trained again with the same few seeds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Literal

from scipy.stats import t as student

from pipeline.tuning.results import SearchResults

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Side:
    """One setting's reruns."""

    figures: tuple[tuple[int, float], ...]
    """(seed, objective) of each rerun that gave one, by seed; at least one."""
    num_failed: int
    """Reruns that gave none."""

    @property
    def mean(self) -> float:
        """Of the objectives."""
        return mean(figure for _, figure in self.figures)

    @property
    def std(self) -> float | None:
        """Standard deviation between seeds; None for a single one."""
        return stdev(figure for _, figure in self.figures) if len(self.figures) > 1 else None


@dataclass(frozen=True)
class Comparison:
    """What the reruns say of the difference."""

    best: Side
    default: Side
    difference: float
    """Mean of the best setting less mean of the default."""
    interval: tuple[float, float] | None
    """95 % interval of the difference; None with a single figure on either side."""
    verdict: Literal["better", "worse", "no difference", "unknown"]
    """How the best setting does: `no difference` where the interval holds 0, `unknown` where there is no interval."""


def compare(results: SearchResults) -> Comparison | None:
    """Compare the reruns of both settings by Welch's interval; None where one of them has no figure.

    The trials of the search do not count: the best one was chosen for its figure, which luck has helped.
    """
    best, default = reruns(results, "best"), reruns(results, "default")
    if best is None or default is None:
        return None
    difference = best.mean - default.mean
    if best.std is None or default.std is None:
        return Comparison(best, default, difference, None, "unknown")
    interval = _welch(difference, (best.std, len(best.figures)), (default.std, len(default.figures)))
    gain = interval if results.summary.direction == "max" else (-interval[1], -interval[0])
    verdict: Literal["better", "worse", "no difference"]
    verdict = "better" if gain[0] > 0 else "worse" if gain[1] < 0 else "no difference"
    return Comparison(best, default, difference, interval, verdict)


def reruns(results: SearchResults, phase: Literal["best", "default"]) -> Side | None:
    """The reruns of one setting; None where none gave a figure."""
    figures = sorted((trial.seed, objective) for trial, objective in results.scored(phase))
    num_run = sum(trial.phase == phase for trial in results.trials)
    return Side(tuple(figures), num_run - len(figures)) if figures else None


def _welch(difference: float, *sides: tuple[float, int]) -> tuple[float, float]:
    """Interval of a difference of means, from (standard deviation, count) of each side (Welch, 1947)."""
    parts = [(std**2 / count, count) for std, count in sides]
    variance = sum(part for part, _ in parts)
    if variance == 0.0:
        return difference, difference
    freedom = variance**2 / sum(part**2 / (count - 1) for part, count in parts)
    half = float(student.ppf((1 + CONFIDENCE) / 2, freedom)) * math.sqrt(variance)
    return difference - half, difference + half
