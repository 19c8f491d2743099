"""One epoch of P × K batches as a pure function: which P people a batch has, and which K photos of each.

A person's photos are shuffled and dealt into groups of K; the last group may be short and is topped up with photos of
other groups. Groups are laid in one row, person after person in a shuffled order, and the row is cut into P columns
of B groups, B being the number of batches. A batch takes one group of each column.

That a person appears once a batch follows from how columns are shuffled. With at most B groups, a person lies in one
column, where each batch takes one group, or at the end of a column (the tail, a groups) and the beginning of the next
(the head, b groups, a + b ≤ B). There, the batches that took the tail are sent to a run of a groups beyond the head,
and the others to the remaining groups by a keyed bijection. So batch x of the first column is traced through the
columns by P small steps, for as many batches at a time as one likes, and nothing is stored but a sum over people.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.data.bijection import NUM_ROUNDS, permute
from pipeline.data.counter import derive_keys
from pipeline.data.people import PhotoTable


class Groups(NamedTuple):
    """The groups of some batches."""

    labels: npt.NDArray[np.int64]
    """[n, P], no label twice in a batch."""
    rows: npt.NDArray[np.int64]
    """[n, P, K] rows of the split."""
    is_top_up: npt.NDArray[np.bool_]
    """[n, P, K]: photos that another group of this epoch has too, or that stand in their own group before."""


@dataclass(frozen=True)
class EpochPlan:
    """The batches of one epoch over a table of photos.

    Photos that are left out are those of people who are not eligible, of a person's groups beyond B, and of the last
    few groups of the row, fewer than P; another epoch leaves out others.
    """

    table: PhotoTable
    eligible: npt.NDArray[np.int64]
    """Labels that take part, each with a photo at least."""
    num_identities: int
    """P."""
    photos_per_identity: int
    """K."""
    key: tuple[str | int, ...]
    """What the epoch's shuffles depend on."""

    @cached_property
    def num_batches(self) -> int:
        """B: the most batches that have P people each. 0 where fewer than P are eligible."""
        groups, people = self._num_groups, self.num_identities
        low, high = 0, int(groups.sum()) // people
        while low < high:  # Σ min(groups, B) − P·B is concave in B and 0 at 0: what is enough once is enough below
            middle = (low + high + 1) // 2
            if int(np.minimum(groups, middle).sum()) >= people * middle:
                low = middle
            else:
                high = middle - 1
        return low

    @cached_property
    def num_top_ups(self) -> int:
        """Slots of the epoch that repeat a photo, were all its groups in it."""
        counts = self.table.num_photos[self.eligible]
        return int((self._num_groups * self.photos_per_identity - counts).sum())

    def groups(self, batches: npt.NDArray[np.int64]) -> Groups:
        """The groups of some batches, each in [0, num_batches)."""
        labels_in_row, ends = self._row_of_groups
        places = self._places(batches.astype(np.uint64)).astype(np.int64)
        index = np.searchsorted(ends, places, side="right")
        labels = labels_in_row[index]
        before = np.where(index > 0, ends[index - 1], 0)
        size = self.photos_per_identity
        slots = (places - before)[..., None] * size + np.arange(size)
        counts = self.table.num_photos[labels][..., None]
        shuffle = derive_keys(1, "photos of a person", *self.key)[0]
        each = np.broadcast_to(labels[..., None], slots.shape)
        rows = self.table.photos(each.ravel(), (slots % counts).ravel(), shuffle)
        return Groups(labels, rows.reshape(slots.shape), slots >= counts)

    @cached_property
    def _num_groups(self) -> npt.NDArray[np.int64]:
        return -(-self.table.num_photos[self.eligible] // self.photos_per_identity)

    @cached_property
    def _row_of_groups(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Labels in the order of the row, and where the groups of each end."""
        places = np.arange(len(self.eligible), dtype=np.uint64)
        keys = derive_keys(NUM_ROUNDS, "order of people", *self.key)
        order = permute(places, len(self.eligible), keys).astype(np.int64)
        return self.eligible[order], np.cumsum(np.minimum(self._num_groups[order], self.num_batches))

    @cached_property
    def _steps(self) -> Sequence[tuple[int, int, npt.NDArray[np.uint64]]]:
        """From each column to the next: length of the tail, where the batches that took it go, keys for the others."""
        num_batches, ends = self.num_batches, self._row_of_groups[1]
        steps = []
        for column in range(1, self.num_identities):
            border = column * num_batches
            person = int(np.searchsorted(ends, border, side="right"))
            begin = int(ends[person - 1]) if person else 0
            tail, head = border - begin, int(ends[person]) - border
            keys = derive_keys(NUM_ROUNDS + 1, "column", column, *self.key)
            first = head + int(keys[-1] % np.uint64(num_batches - tail - head + 1)) if tail else 0
            steps.append((tail, first, keys[:-1]))
        return steps

    def _places(self, batches: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        """Places in the row of the batches' groups: [n, P]."""
        num_batches = self.num_batches
        place = permute(batches, num_batches, derive_keys(NUM_ROUNDS, "batches", *self.key))
        places = [place]
        for column, (tail, first, keys) in enumerate(self._steps, start=1):
            place = _next_column(place, num_batches, tail, first, keys)
            places.append(place + np.uint64(column * num_batches))
        return np.stack(places, axis=1)


def _next_column(
    place: npt.NDArray[np.uint64], num_batches: int, tail: int, first: int, keys: npt.NDArray[np.uint64]
) -> npt.NDArray[np.uint64]:
    """A bijection of [0, num_batches): the last `tail` places go to first, first + 1, …, the others elsewhere."""
    if not tail:
        return permute(place, num_batches, keys)
    num_others = num_batches - tail
    is_tail = place >= np.uint64(num_others)
    result = np.empty_like(place)
    result[is_tail] = place[is_tail] - np.uint64(num_others) + np.uint64(first)
    if num_others:
        moved = permute(place[~is_tail], num_others, keys)
        result[~is_tail] = np.where(moved < np.uint64(first), moved, moved + np.uint64(tail))
    return result
