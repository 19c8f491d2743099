"""What the reader asks of a store, and the files of this machine."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

# A split may have more shards than a process may have open files (usually 1,024).
_MAX_OPEN_SHARDS = 256


class Range(NamedTuple):
    """A stretch of a shard."""

    offset: int
    size: int


class ShardBytes(Protocol):
    """Reads stretches of a split's shards; any number of threads may read at a time."""

    def read(self, shard: int, ranges: Sequence[Range]) -> list[bytes | OSError]:
        """Read stretches of one shard. An error is an answer; fewer bytes than asked for mean that the shard ends."""

    def read_afresh(self, shard: int, wanted: Range) -> bytes | OSError:
        """Read a stretch again whose bytes turned out wrong, past anything that was kept of it."""

    def close(self) -> None:
        """Free what is held; the caller has seen to it that no thread reads any more."""


@dataclass
class _OpenShard:
    descriptor: int
    num_users: int = 0


class LocalShards:
    """See `ShardBytes`. Descriptors stay open, the least recently used closed first when they become many."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._lock = threading.Lock()
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()

    def read(self, shard: int, ranges: Sequence[Range]) -> list[bytes | OSError]:
        try:
            with self._descriptor(shard) as descriptor:
                return [_read_range(descriptor, wanted) for wanted in ranges]
        except OSError as error:  # the tar cannot be opened
            return [error] * len(ranges)

    def read_afresh(self, shard: int, wanted: Range) -> bytes | OSError:
        return self.read(shard, [wanted])[0]

    def close(self) -> None:
        with self._lock:
            while self._open:
                os.close(self._open.popitem()[1].descriptor)

    @contextmanager
    def _descriptor(self, shard: int) -> Iterator[int]:
        """Lend a shard's descriptor; it is not closed while it is lent (its number could come to mean another file)."""
        with self._lock:
            entry = self._open.get(shard)
            if entry is None:
                entry = _OpenShard(os.open(self._paths[shard], os.O_RDONLY | os.O_CLOEXEC))
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


def _read_range(descriptor: int, wanted: Range) -> bytes | OSError:
    """Fewer bytes only where the file ends (network file systems may answer in pieces)."""
    offset, size = wanted
    try:
        content = os.pread(descriptor, size, offset)
        while len(content) < size:
            following = os.pread(descriptor, size - len(content), offset + len(content))
            if not following:
                break
            content += following
    except OSError as error:
        return error
    return content
