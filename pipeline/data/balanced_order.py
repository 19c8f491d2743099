"""P people × K photos a global batch, epoch after epoch, across changes of P, K and the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from pipeline.config.errors import UserError
from pipeline.data.balanced_epoch import EpochPlan, Groups
from pipeline.data.bijection import NUM_ROUNDS, permute
from pipeline.data.counter import derive_keys
from pipeline.data.manifest import SplitIndex
from pipeline.data.people import PhotoTable

# batches whose people are found at a time: many, for what they cost grows little with their number
_WINDOW = 256


class BalancedPart(BaseModel):
    """From where on a stream is cut into which batches. A checkpoint holds those of its run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    start: int
    """Stream position."""
    global_batch: int
    num_identities: int
    """P."""
    photos_per_identity: int
    """K."""
    min_photos: int

    @property
    def num_others(self) -> int:
        """Slots of a global batch for photos of other people."""
        return self.global_batch - self.num_identities * self.photos_per_identity


@dataclass(frozen=True)
class _Stretch:
    """A part of the stream, and the rest of the epoch that it began in."""

    part: BalancedPart
    epoch: int
    """That it began in."""
    done: float
    """Share of that epoch that was over; 0 at a border."""
    rest: EpochPlan | None
    """Over the photos that the epoch has not seen; None at a border."""
    full: EpochPlan
    """Any full epoch, for its length."""

    @property
    def num_rest(self) -> int:
        return 0 if self.rest is None else self.rest.num_batches


class BalancedOrder:
    """See `step_plan.Order`. Each global batch has P people with K photos each, side by side, and others in between.

    A person appears once a batch, and a photo once an epoch apart from top-ups, which are flagged. Epochs are whole
    batches. Where P, K or the batch changes, the rest of the epoch is planned anew over the photos it has not seen.

    Args:
        split: the samples.
        seed: of the shuffles.
        parts: how the stream is cut; the first starts at 0, the others at the end of a batch of the one before.

    Raises:
        UserError: fewer people than P, or too few photos of others.
    """

    def __init__(self, split: SplitIndex, seed: int, parts: Sequence[BalancedPart]) -> None:
        self._labels = split.label
        self._table = PhotoTable.create(split)
        self._key = "".join(f"{word:016x}" for word in derive_keys(4, "identity-balanced order", split.digest, seed))
        self._stretches: list[_Stretch] = []
        for part in parts:
            self._check(part, split)
            self._stretches.append(self._begin(part))
        self._window: tuple[tuple[int, int, int], Groups] | None = None
        self._batch: tuple[int, npt.NDArray[np.int64], npt.NDArray[np.bool_]] | None = None

    @property
    def num_rows(self) -> int:
        """Of the split."""
        return len(self._labels)

    @property
    def epoch_samples(self) -> int:
        """Slots of a full epoch."""
        last = self._stretches[-1]
        return last.full.num_batches * last.part.global_batch

    def rows(self, start: int, count: int) -> npt.NDArray[np.int64]:
        """Give the rows at stream positions start … start + count - 1: [count] int64."""
        return self._slots(start, count)[0]

    def top_ups(self, start: int, count: int) -> npt.NDArray[np.bool_]:
        """Which of the positions start … start + count - 1 repeat a photo to fill a group: [count]."""
        return self._slots(start, count)[1]

    def epoch(self, position: int) -> float:
        """Epochs that are over at a stream position."""
        stretch = self._stretch(position)
        number = (position - stretch.part.start) / stretch.part.global_batch
        if number < stretch.num_rest:
            return stretch.epoch + stretch.done + (1 - stretch.done) * number / stretch.num_rest
        return stretch.epoch + bool(stretch.done) + (number - stretch.num_rest) / stretch.full.num_batches

    def position_at(self, epoch: float) -> float:
        """Stream position, as the last part is cut, at which so many epochs are over; at least where it starts."""
        stretch = self._stretches[-1]
        past = epoch - stretch.epoch - bool(stretch.done)
        if past >= 0:
            number = stretch.num_rest + past * stretch.full.num_batches
        else:
            number = max(0.0, 1 + past / (1 - stretch.done)) * stretch.num_rest if stretch.done else 0.0
        return stretch.part.start + number * stretch.part.global_batch

    def describe(self) -> str:
        """What an epoch holds, in a line."""
        stretch = self._stretches[-1]
        part, plan = stretch.part, stretch.full
        others = f" + {part.num_others} others" if part.num_others else ""
        left_out = int((self._table.num_photos > 0).sum()) - len(plan.eligible)
        left = f", {left_out:,} people with fewer than {part.min_photos} photos left out" if left_out else ""
        return (
            f"batches of {part.num_identities} people × {part.photos_per_identity} photos{others}, "
            f"{plan.num_batches:,} an epoch with up to {plan.num_top_ups:,} top-ups{left}"
        )

    def _slots(self, start: int, count: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        if start < 0 or count < 0:
            raise ValueError(f"positions count from 0, got start {start}, count {count}")
        rows, flags = np.empty(count, np.int64), np.empty(count, bool)
        done = 0
        while done < count:
            first, batch_rows, batch_flags = self._batch_at(start + done)
            offset = start + done - first
            size = min(count - done, len(batch_rows) - offset)
            rows[done : done + size] = batch_rows[offset : offset + size]
            flags[done : done + size] = batch_flags[offset : offset + size]
            done += size
        return rows, flags

    def _batch_at(self, position: int) -> tuple[int, npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Stream position of the first slot of the batch around a position, its rows, and which are top-ups."""
        stretch = self._stretch(position)
        part = stretch.part
        number = (position - part.start) // part.global_batch
        first = part.start + number * part.global_batch
        if self._batch is None or self._batch[0] != first:
            labels, rows, is_top_up = self._groups(stretch, number)
            slots = np.arange(part.global_batch + 1) * part.num_others // part.global_batch
            is_other = np.diff(slots) == 1  # spread evenly, so that each micro-batch has its share
            batch_rows, flags = np.empty(part.global_batch, np.int64), np.zeros(part.global_batch, bool)
            batch_rows[~is_other], flags[~is_other] = rows.ravel(), is_top_up.ravel()
            batch_rows[is_other] = self._others(first, labels, part.num_others)
            self._batch = first, batch_rows, flags
        return self._batch

    def _groups(self, stretch: _Stretch, number: int) -> Groups:
        """The groups of batch `number` of a stretch."""
        if number < stretch.num_rest:
            epoch, batch = stretch.epoch, number
        else:
            past, batch = divmod(number - stretch.num_rest, stretch.full.num_batches)
            epoch = stretch.epoch + bool(stretch.done) + past
        window, place = divmod(batch, _WINDOW)
        wanted = stretch.part.start, epoch, window
        if self._window is None or self._window[0] != wanted:
            plan = self._epoch_plan(stretch, epoch)
            batches = np.arange(window * _WINDOW, min((window + 1) * _WINDOW, plan.num_batches))
            self._window = wanted, plan.groups(batches)
        labels, rows, is_top_up = self._window[1]
        return Groups(labels[place], rows[place], is_top_up[place])

    def _epoch_plan(self, stretch: _Stretch, epoch: int) -> EpochPlan:
        if stretch.done and epoch == stretch.epoch:
            assert stretch.rest is not None
            return stretch.rest
        return self._plan(self._table, stretch.part, epoch)

    def _plan(self, table: PhotoTable, part: BalancedPart, epoch: int, start: int = 0) -> EpochPlan:
        """Of an epoch, or of its rest from a position on."""
        eligible = np.flatnonzero((self._table.num_photos >= part.min_photos) & (table.num_photos > 0))
        return EpochPlan(table, eligible, part.num_identities, part.photos_per_identity, (self._key, epoch, start))

    def _others(self, position: int, labels: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
        """Photos of people who are not among a batch's, drawn without repetition: [count] rows."""
        if not count:
            return np.empty(0, np.int64)
        keys = derive_keys(NUM_ROUNDS, "others", self._key, position)
        found, done = np.empty(0, np.int64), 0
        while len(found) < count:
            stop = min(self.num_rows, done + 2 * count)
            drawn = permute(np.arange(done, stop, dtype=np.uint64), self.num_rows, keys).astype(np.int64)
            found = np.concatenate([found, drawn[~np.isin(self._labels[drawn], labels)]])
            done = stop
        return found[:count]

    def _stretch(self, position: int) -> _Stretch:
        return next(stretch for stretch in reversed(self._stretches) if stretch.part.start <= position)

    def _begin(self, part: BalancedPart) -> _Stretch:
        """A part's stretch, after those that stand already."""
        full = self._plan(self._table, part, 0)
        if not self._stretches:
            return _Stretch(part, 0, 0.0, None, full)
        before = self._stretches[-1]
        number, cut = divmod(part.start - before.part.start, before.part.global_batch)
        if cut:
            raise ValueError(f"position {part.start} is no end of a batch of {before.part.global_batch}")
        done = self.epoch(part.start)
        epoch, batch = before.epoch, number
        if number >= before.num_rest:
            past, batch = divmod(number - before.num_rest, before.full.num_batches)
            epoch += bool(before.done) + past
        if not batch and not (before.done and epoch == before.epoch):
            return _Stretch(part, epoch, 0.0, None, full)
        plan = self._epoch_plan(before, epoch)
        is_seen = np.zeros(self.num_rows, bool)
        for first in range(0, batch, _WINDOW):
            is_seen[plan.groups(np.arange(first, min(first + _WINDOW, batch))).rows] = True
        rest = self._plan(plan.table.without(is_seen), part, epoch, part.start)
        return _Stretch(part, epoch, done - epoch, rest, full)

    def _check(self, part: BalancedPart, split: SplitIndex) -> None:
        counts = self._table.num_photos
        num_eligible = int(((counts >= part.min_photos) & (counts > 0)).sum())
        if num_eligible < part.num_identities:
            raise UserError(
                "data.order.num_identities",
                f"{part.num_identities}, but {split.name} has {num_eligible} people with "
                f"{part.min_photos} photos or more",
                f"at most {num_eligible}",
                "take fewer people a batch, or a lower data.order.min_photos",
            )
        greatest = np.sort(counts)[-part.num_identities :].sum()
        if self.num_rows - greatest < part.num_others:
            raise UserError(
                "training.global_batch",
                f"{part.num_others} slots for photos of others, but beside {part.num_identities} people there may be "
                f"only {self.num_rows - greatest}",
                f"at most {part.num_identities * part.photos_per_identity + self.num_rows - greatest}",
            )
