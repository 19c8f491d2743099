"""Shards on a file system: `pread` on descriptors that stay open."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path

from pipeline.data.store.base import Content, Range, ReadFailure

# A split may have more shards than a process may have open files (usually 1,024).
_MAX_OPEN_SHARDS = 256
_shard_of = attrgetter("shard")


@dataclass
class _OpenShard:
    descriptor: int
    num_users: int = 0


class LocalStore:
    """See `base.Store`. Descriptors stay open, the least recently used closed first when they become many."""

    def __init__(self, shards: Sequence[Path]) -> None:
        self._shards = shards
        self._lock = threading.Lock()
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()

    def begin(self, ranges: Sequence[Range]) -> _LocalReads:
        """Remember the ranges; they are read when they are taken."""
        return _LocalReads(self, ranges)

    def again(self, wanted: Range) -> None:
        """Nothing: the file has the same bytes."""

    def stop(self) -> None:
        """Nothing: a file answers."""

    def close(self) -> None:
        """Close all tars."""
        with self._lock:
            while self._open:
                os.close(self._open.popitem()[1].descriptor)

    def read(self, ranges: Sequence[Range]) -> list[Content]:
        """Read some ranges: quickest when those of a shard are side by side."""
        contents: list[Content] = []
        for shard, group in groupby(ranges, _shard_of):
            own = list(group)
            try:
                with self._descriptor(shard) as descriptor:
                    contents += [_read_range(descriptor, start, stop - start) for _, start, stop in own]
            except OSError as error:  # the tar cannot be opened
                contents += [ReadFailure(error.strerror or str(error))] * len(own)
        return contents

    @contextmanager
    def _descriptor(self, shard: int) -> Iterator[int]:
        """Lend a shard's descriptor; it is not closed while it is lent (its number could come to mean another file)."""
        with self._lock:
            entry = self._open.get(shard)
            if entry is None:
                entry = _OpenShard(os.open(self._shards[shard], os.O_RDONLY | os.O_CLOEXEC))
                self._open[shard] = entry
            entry.num_users += 1
            self._open.move_to_end(shard)
        try:
            yield entry.descriptor
        finally:
            with self._lock:
                entry.num_users -= 1
                if len(self._open) > _MAX_OPEN_SHARDS:
                    self._close_idle()

    def _close_idle(self) -> None:
        idle = [shard for shard, entry in self._open.items() if entry.num_users == 0]
        for shard in idle[: len(self._open) - _MAX_OPEN_SHARDS]:
            os.close(self._open.pop(shard).descriptor)


@dataclass(frozen=True)
class _LocalReads:
    store: LocalStore
    ranges: Sequence[Range]

    def take(self, numbers: Sequence[int]) -> list[Content]:
        """See `base.Reads`."""
        return self.store.read([self.ranges[number] for number in numbers])


def _read_range(descriptor: int, offset: int, size: int) -> Content:
    """Read up to `size` bytes; fewer only where the file ends (network file systems may answer in pieces)."""
    try:
        content = os.pread(descriptor, size, offset)
        while len(content) < size:
            following = os.pread(descriptor, size - len(content), offset + len(content))
            if not following:
                break
            content += following
    except OSError as error:
        return ReadFailure(error.strerror or str(error))
    return content
