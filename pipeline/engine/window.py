"""What the steps between two records cost, on this rank and on the others."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median_low

import torch

from pipeline import dist
from pipeline.progress import LONG_STAGES, PROGRESS, Stage

STEP_STAGES = tuple(stage for stage in Stage if stage not in LONG_STAGES)
"""The stages that a step is made of."""
OWN_STAGES = tuple(stage for stage in STEP_STAGES if stage is not Stage.COMMUNICATION)
"""Those that do not depend on other ranks."""
_STATM = Path("/proc/self/statm")


@dataclass(frozen=True)
class RankCost:
    """What a window cost a rank."""

    stage_s: dict[Stage, float]
    """Seconds a step, by the stages of `STEP_STAGES`."""
    resident_bytes: int
    """Memory of the process."""
    device_bytes: int
    """Greatest memory of its GPU's tensors in the window, 0 on a CPU."""

    @property
    def own_s(self) -> float:
        """Seconds a step outside of collectives."""
        return sum(self.stage_s[stage] for stage in OWN_STAGES)


@dataclass(frozen=True)
class WindowCost:
    """What a window cost all ranks; the same on all of them."""

    metrics: dict[str, float]
    """For the record."""
    ranks: list[RankCost]
    elapsed_s: float
    """Length of the window."""


class Window:
    """The steps since the last record.

    Args:
        device: where this rank computes.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        PROGRESS.take()  # what came before is of no step
        self._reset()

    def add(self, wait_s: float, samples: int) -> None:
        """Count a step: how long this rank waited for its batch, and the samples of all ranks."""
        self._wait_s += wait_s
        self._samples += samples
        self._steps += 1

    def leave_out(self, seconds: float) -> None:
        """Do not count some time that was not spent on training."""
        self._started += seconds

    def close(self) -> WindowCost:
        """End the window and begin the next. Collective on all ranks."""
        elapsed_s = max(1e-9, time.monotonic() - self._started)
        ranks = self._exchange()
        own_s = [rank.own_s for rank in ranks]
        metrics = {
            "samples_per_s": self._samples / elapsed_s,
            "data_wait": min(1.0, self._wait_s / elapsed_s),
            "step_s": sum(sum(rank.stage_s.values()) for rank in ranks) / len(ranks),
        }
        for stage in STEP_STAGES:
            metrics[f"time/{stage}_s"] = sum(rank.stage_s[stage] for rank in ranks) / len(ranks)
        metrics |= {
            "rank_own_s_median": median_low(own_s),
            "rank_own_s_max": max(own_s),
            "slowest_rank": own_s.index(max(own_s)),
            "resident_bytes": max(rank.resident_bytes for rank in ranks),
        }
        if self._device.type == "cuda":
            metrics["device_bytes"] = max(rank.device_bytes for rank in ranks)
        self._reset()
        return WindowCost(metrics, ranks, elapsed_s)

    def _exchange(self) -> list[RankCost]:
        taken = PROGRESS.take()
        row = [taken[stage] / max(1, self._steps) for stage in STEP_STAGES]
        device_bytes = 0
        if self._device.type == "cuda":
            device_bytes = torch.cuda.max_memory_allocated(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
        row += [_resident_bytes(), device_bytes]
        table = dist.all_gather_rows(torch.tensor([row], dtype=torch.float64, device=self._device))
        return [
            RankCost(dict(zip(STEP_STAGES, values, strict=False)), int(values[-2]), int(values[-1]))
            for values in table.tolist()
        ]

    def _reset(self) -> None:
        self._started, self._wait_s, self._samples, self._steps = time.monotonic(), 0.0, 0, 0


def _resident_bytes() -> int:
    if _STATM.is_file():
        return int(_STATM.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # where there is no /proc: the peak, in bytes on macOS
