"""Which rows a rank takes at a step: pure functions over the stream of positions.

The global batch at position p is the slots [p, p + global_batch). It is cut into micro-batches of local_batch
consecutive slots, the unit that no change of ranks ever cuts, and each rank takes a contiguous run of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pipeline.config.errors import UserError


class Order(Protocol):
    """What a stream of samples must offer."""

    @property
    def num_rows(self) -> int: ...

    def rows(self, start: int, count: int) -> npt.NDArray[np.int64]:
        """Give the rows at stream positions start … start + count - 1: [count] int64."""

    def top_ups(self, start: int, count: int) -> npt.NDArray[np.bool_]:
        """Say which of these positions repeat a photo of the epoch to fill a person's group: [count]."""


class EpochOrder(Order, Protocol):
    """An order that a whole run can follow."""

    @property
    def epoch_samples(self) -> int:
        """Slots of a full epoch."""

    def epoch(self, position: int) -> float:
        """Epochs that are over at a stream position."""

    def position_at(self, epoch: float) -> float:
        """Stream position at which so many epochs are over."""

    def describe(self) -> str:
        """What is to know about it, in a line; may be empty."""


@dataclass(frozen=True)
class MicroBatchPlan:
    """The slots of one micro-batch."""

    position: int
    """Stream position of the first slot."""
    rows: npt.NDArray[np.int64]
    """[local_batch] rows of the split's index."""
    is_filler: bool
    """True for a copy that is masked as a whole: it keeps the number of micro-batches equal on all ranks."""


@dataclass(frozen=True)
class StepPlan:
    """One rank's part of one global batch."""

    position: int
    """Stream position of the global batch's first slot."""
    micro_batches: tuple[MicroBatchPlan, ...]
    """The same number on every rank; fillers stand last."""
    num_micro_batches_global: int
    """Real micro-batches in the global batch."""
    num_top_ups: int
    """Slots of the global batch that repeat a photo."""


def check_batches(num_rows: int, global_batch: int, local_batch: int) -> None:
    """Refuse batch sizes that no plan can serve.

    Raises:
        UserError: a size below 1, local_batch does not divide global_batch, or fewer rows than a global batch.
    """
    if local_batch < 1 or global_batch < 1:
        raise UserError("local_batch, global_batch", f"{local_batch} and {global_batch}", "at least 1 each")
    if global_batch % local_batch:
        raise UserError(
            "global_batch",
            f"{global_batch} is no multiple of local_batch {local_batch}",
            "a whole number of micro-batches",
            f"set global_batch to {-(-global_batch // local_batch) * local_batch} or change local_batch",
        )
    if num_rows < global_batch:
        raise UserError(
            "global_batch",
            f"fewer samples than one global batch ({num_rows} < {global_batch})",
            f"at most {num_rows}",
            "set a smaller global_batch or add photos",
        )


def plan_step(order: Order, position: int, global_batch: int, local_batch: int, rank: int, world_size: int) -> StepPlan:
    """Plan one rank's part of the global batch at a stream position.

    The M = global_batch / local_batch micro-batches are cut contiguously over the ranks as evenly as possible: rank r
    takes those from M·r // N up to M·(r + 1) // N. A rank with fewer than ceil(M / N) gets fillers.

    Args:
        order: gives the row at each stream position.
        position: stream position of the global batch's first slot.
        global_batch: slots of the global batch, a multiple of `local_batch`.
        local_batch: slots of a micro-batch.
        rank: 0 … world_size - 1.
        world_size: number of ranks.
    """
    num_global = global_batch // local_batch
    first, stop = num_global * rank // world_size, num_global * (rank + 1) // world_size
    num_local = -(-num_global // world_size)
    # A filler repeats the rank's last real micro-batch, already at hand; a rank without any repeats the global
    # batch's first.
    numbers = list(range(first, stop)) + [stop - 1 if stop > first else 0] * (num_local - (stop - first))
    plans: list[MicroBatchPlan] = []
    for place, number in enumerate(numbers):
        start = position + number * local_batch
        plans.append(MicroBatchPlan(start, order.rows(start, local_batch), is_filler=place >= stop - first))
    num_top_ups = int(np.count_nonzero(order.top_ups(position, global_batch)))
    return StepPlan(position, tuple(plans), num_global, num_top_ups)
