"""The stores of several data sets as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.data.mix import owner_of
from pipeline.data.store.base import Content, Range, Reads, Store


class MixedStore:
    """See `base.Store`.

    Args:
        stores: one a data set.
        first_shards: [stores], of each the place of its first shard among all.
    """

    def __init__(self, stores: Sequence[Store], first_shards: npt.NDArray[np.int64]) -> None:
        self._stores, self._first_shards = stores, first_shards

    def begin(self, ranges: Sequence[Range]) -> _MixedReads:
        """Ask each store for its own."""
        shards = np.array([wanted.shard for wanted in ranges], np.int64)
        owners = owner_of(self._first_shards, shards).tolist()
        own: dict[int, list[Range]] = {}
        places = []
        for wanted, owner in zip(ranges, owners, strict=True):
            listed = own.setdefault(owner, [])
            places.append((owner, len(listed)))
            listed.append(self._within(owner, wanted))
        return _MixedReads({owner: self._stores[owner].begin(listed) for owner, listed in own.items()}, places)

    def again(self, wanted: Range) -> Content | None:
        """Read a range anew."""
        owner = int(owner_of(self._first_shards, np.array(wanted.shard)))
        return self._stores[owner].again(self._within(owner, wanted))

    def stop(self) -> None:
        """Let whoever waits give up soon."""
        for store in self._stores:
            store.stop()

    def close(self) -> None:
        """Free what is held."""
        for store in self._stores:
            store.close()

    def _within(self, owner: int, wanted: Range) -> Range:
        return wanted._replace(shard=wanted.shard - int(self._first_shards[owner]))


@dataclass(frozen=True)
class _MixedReads:
    reads: dict[int, Reads]
    places: list[tuple[int, int]]
    """Of each range, its store and its number there."""

    def take(self, numbers: Sequence[int]) -> list[Content]:
        """See `base.Reads`."""
        wanted: dict[int, list[int]] = {}
        for place, number in enumerate(numbers):
            wanted.setdefault(self.places[number][0], []).append(place)
        result: list[Content | None] = [None] * len(numbers)
        for owner, own in wanted.items():
            contents = self.reads[owner].take([self.places[numbers[place]][1] for place in own])
            for place, content in zip(own, contents, strict=True):
                result[place] = content
        return [content for content in result if content is not None]
