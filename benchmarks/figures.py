"""One form for all benchmarks: what was measured several times, beside what, and what the machine could do at most.

figure = Figure("loader, 112 px", "samples/s", ours=[…], peers={"webdataset.WebLoader": […]}, limit=("decoder", […]))
print(figure.text())
write(Path("loader.json"), [figure])
"""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Figure:
    """A quantity, measured in turns in one run."""

    what: str
    unit: str
    """`s` and `MiB` are better small, all others (`samples/s`, …) large."""
    ours: Sequence[float]
    peers: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """By name, measured in the same run."""
    limit: tuple[str, Sequence[float]] | None = None
    """Name and value of what no program could pass on this machine: a bare decoder, matrix products alone."""
    goal: str = ""
    """What was aimed at, in words."""

    @property
    def is_better_small(self) -> bool:
        return self.unit in ("s", "ms", "MiB")

    def advantage(self, others: Sequence[float]) -> float:
        """How many times better ours is: above 1 is better than the others.

        The median of the turns' ratios, which a machine whose pace changes from turn to turn moves least; where there
        are not as many turns of both, the ratio of the medians.
        """
        if len(self.ours) == len(others):
            ratio = statistics.median(own / other for own, other in zip(self.ours, others, strict=True))
        else:
            ratio = statistics.median(self.ours) / statistics.median(others)
        return 1.0 / ratio if self.is_better_small else ratio

    def text(self) -> str:
        """A line for ours and for each of the others."""
        lines = [self.what + (f" (goal: {self.goal})" if self.goal else "")]
        lines.append(f"  {'ours':28} {spread(self.ours, self.unit)}")
        for name, values in self.peers.items():
            lines.append(f"  {name:28} {spread(values, self.unit)}  ours is {self.advantage(values):.2f} times as good")
        if self.limit is not None:
            name, values = self.limit
            lines.append(
                f"  {name:28} {spread(values, self.unit)}  ours reaches {self.advantage(values):.0%} of this limit"
            )
        return "\n".join(lines)


def spread(values: Sequence[float], unit: str) -> str:
    """Median with minimum and maximum, in three digits or more."""
    middle = statistics.median(values)
    digits = 0 if middle >= 1000 else max(1, 2 - math.floor(math.log10(middle))) if middle > 0 else 3
    return f"{middle:12,.{digits}f} {unit} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def write(path: Path, figures: Sequence[Figure]) -> None:
    """Write figures with the machine they were measured on."""
    machine = {"cores": len(os.sched_getaffinity(0)), "load": os.getloadavg()[0], "platform": platform.platform()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine, "figures": [asdict(one) for one in figures]}, indent=1) + "\n")


def read(path: Path) -> list[Figure]:
    """The figures of a file."""
    found = json.loads(path.read_text())["figures"]
    return [Figure(**{**one, "limit": one["limit"] and tuple(one["limit"])}) for one in found]
