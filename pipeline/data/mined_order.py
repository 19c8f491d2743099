"""Plain order and a mined list in one stream: where rounds fall, and which slots of a batch come from where.

The stream is cut into segments: up to `start` it is plain, then each `every` samples a round makes a list for the
segment that follows. There, m of a global batch's G slots come from the list and G − m from the plain order, which goes
on through all segments as if the mined slots were not there: so it visits each row exactly once an epoch. All of it
is arithmetic on the number of samples consumed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.config.mining import MiningConfig
from pipeline.data.mined_list import MinedList
from pipeline.data.order import PlainOrder


@dataclass(frozen=True)
class Segment:
    """A part of the stream with one list, or the plain part before the first."""

    number: int
    """Of the round that made its list; 0 for the plain part."""
    start: int
    """Stream position of the first slot."""
    stop: int
    """Stream position after the last."""


@dataclass(frozen=True)
class MiningLayout:
    """Where rounds fall and how batches are filled; positions and lengths are in samples."""

    start: int
    """Position of the first round, a multiple of `global_batch`."""
    every: int
    """Length of a segment, a multiple of `global_batch`."""
    global_batch: int
    """G."""
    num_mined: int
    """m, slots of a global batch that come from the list: a multiple of a group, less than G."""

    @staticmethod
    def create(config: MiningConfig, global_batch: int) -> MiningLayout:
        """Lay out what a configuration asks for."""
        start, every = config.start_step * global_batch, config.every_steps * global_batch
        return MiningLayout(start, every, global_batch, config.mined_slots(global_batch))

    def segment(self, position: int) -> Segment:
        """The segment that a stream position is in."""
        if position < self.start:
            return Segment(0, 0, self.start)
        number = (position - self.start) // self.every
        start = self.start + number * self.every
        return Segment(number + 1, start, start + self.every)

    def plain_position(self, position: int) -> int:
        """How many of the slots before a global batch's first slot were plain: its position in the plain order."""
        num_batches = max(0, position - self.start) // self.global_batch
        return position - num_batches * self.num_mined

    def num_steps(self, plain_samples: float) -> int:
        """Steps whose plain slots come nearest to a number of samples; at least one."""
        before = min(plain_samples, self.start)
        steps = before / self.global_batch + (plain_samples - before) / (self.global_batch - self.num_mined)
        return max(1, round(steps))


@dataclass(frozen=True)
class MinedOrder:
    """The order of one segment, see `step_plan.Order`.

    The mined slots are spread evenly over a global batch, so that each micro-batch, the group of batch norm, has its
    share of them. The list's groups are walked in an order keyed by its hash and the seed, from the start of the
    segment, again and again in another order; a global batch holds whole groups.
    """

    plain: PlainOrder
    layout: MiningLayout
    segment: Segment
    groups: npt.NDArray[np.int64]
    """[L, group] rows."""
    walk: PlainOrder
    """Over the L groups."""

    @staticmethod
    def create(plain: PlainOrder, layout: MiningLayout, segment: Segment, mined: MinedList, seed: int) -> MinedOrder:
        """The order of a segment with its list."""
        walk = PlainOrder.create(mined.sha256, len(mined.rows), seed)
        return MinedOrder(plain, layout, segment, mined.rows, walk)

    @property
    def num_rows(self) -> int:
        """Of the split."""
        return self.plain.num_rows

    def rows(self, start: int, count: int) -> npt.NDArray[np.int64]:
        """Give the rows at stream positions start … start + count - 1, all in the segment: [count] int64."""
        segment, layout = self.segment, self.layout
        if start < segment.start or start + count > segment.stop:
            raise ValueError(f"positions {start} to {start + count} leave the segment {segment.start}–{segment.stop}")
        batch, slot = np.divmod(np.arange(start, start + count + 1) - segment.start, layout.global_batch)
        # of the segment's slots before each: so many were mined; a slot is mined where the next has one more before it
        num_mined = batch * layout.num_mined + slot * layout.num_mined // layout.global_batch
        is_mined = np.diff(num_mined) == 1
        result = np.empty(count, np.int64)
        first_plain = layout.plain_position(segment.start) + start - segment.start - int(num_mined[0])
        result[~is_mined] = self.plain.rows(first_plain, int(np.count_nonzero(~is_mined)))
        result[is_mined] = self._mined(int(num_mined[0]), int(num_mined[-1]))
        return result

    def top_ups(self, start: int, count: int) -> npt.NDArray[np.bool_]:
        """None: [count] False."""
        return np.zeros(count, bool)

    def _mined(self, first: int, stop: int) -> npt.NDArray[np.int64]:
        """Rows of the segment's mined slots first … stop - 1."""
        size = self.groups.shape[1]
        first_group = first // size
        walked = self.walk.rows(first_group, -(-stop // size) - first_group)
        return self.groups[walked].reshape(-1)[first - first_group * size : stop - first_group * size]


@dataclass(frozen=True)
class ListedOrder:
    """Rows as they stand in a list, see `step_plan.Order`."""

    listed: npt.NDArray[np.int64]

    @property
    def num_rows(self) -> int:
        """Length of the list."""
        return len(self.listed)

    def rows(self, start: int, count: int) -> npt.NDArray[np.int64]:
        """Give the rows at places start … start + count - 1: [count] int64."""
        return self.listed[start : start + count]

    def top_ups(self, start: int, count: int) -> npt.NDArray[np.bool_]:
        """None: [count] False."""
        return np.zeros(count, bool)
