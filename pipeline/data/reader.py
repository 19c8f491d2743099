"""Random access to the samples of a split: from a row of the index to the JPEG's bytes, checked.

One sample that cannot be read is an answer, not an exception: a data set of millions of photos on a shared store has
some every day, and the caller masks and counts them.
"""

from __future__ import annotations

import os
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import numpy.typing as npt

from pipeline.data.manifest import SplitIndex

IO_ERROR = "io_error"
SHORT_READ = "short_read"
CRC_MISMATCH = "crc_mismatch"
UNDECODABLE = "undecodable"
SIZE_MISMATCH = "size_mismatch"

_MIN_BAD_SAMPLES_TO_STOP = 10

# A split may have more shards than a process may have open files (usually 1,024).
_MAX_OPEN_SHARDS = 256


@dataclass(frozen=True)
class BadSample:
    """A sample that could not be used; its slot is masked."""

    sample_id: int
    shard: str
    """Path of the tar relative to the data set, `train/train-000000.tar`."""
    reason: str
    """One of `io_error`, `short_read`, `crc_mismatch`, `undecodable`, `size_mismatch`."""
    detail: str


def allowed_bad_samples(num_read: int, max_bad_share: float) -> float:
    """How many of the samples read so far may be unreadable: a share of them, and never fewer than a handful."""
    return max(_MIN_BAD_SAMPLES_TO_STOP, max_bad_share * num_read)


@dataclass
class _OpenShard:
    descriptor: int
    num_users: int = 0


class Reader:
    """Reads JPEG bytes by row of a split's index; any number of threads may read at a time.

    Descriptors of the tars stay open, the least recently used closed first when they become many.
    """

    def __init__(self, split: SplitIndex) -> None:
        self._split = split
        self._lock = threading.Lock()
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()

    def by_place(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Give the permutation that visits rows in the order of their place on disk, [B] int64."""
        return np.lexsort((self._split.jpg_offset[rows], self._split.shard[rows]))

    def read(self, row: int) -> bytearray | BadSample:
        """Read the bytes of one sample and check their CRC-32."""
        split = self._split
        offset, size = int(split.jpg_offset[row]), int(split.jpg_size[row])
        try:
            with self._descriptor(int(split.shard[row])) as descriptor:
                content = _read_range(descriptor, offset, size)
        except OSError as error:
            return self.bad_sample(row, IO_ERROR, error.strerror or str(error))
        if len(content) < size:
            return self.bad_sample(row, SHORT_READ, f"{len(content)} of {size} bytes at offset {offset}")
        found, expected = zlib.crc32(content), int(split.jpg_crc32[row])
        if found != expected:
            return self.bad_sample(row, CRC_MISMATCH, f"{found:08x} at offset {offset}, expected {expected:08x}")
        return content

    def bad_sample(self, row: int, reason: str, detail: str) -> BadSample:
        """Name a sample that could not be used."""
        path = self._split.shards[int(self._split.shard[row])]
        return BadSample(int(self._split.sample_id[row]), f"{path.parent.name}/{path.name}", reason, detail)

    def close(self) -> None:
        """Close all tars; the caller has seen to it that no thread reads any more."""
        with self._lock:
            while self._open:
                os.close(self._open.popitem()[1].descriptor)

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _descriptor(self, shard: int) -> Iterator[int]:
        """Lend a shard's descriptor; it is not closed while it is lent (its number could come to mean another file)."""
        with self._lock:
            entry = self._open.get(shard)
            if entry is None:
                entry = _OpenShard(os.open(self._split.shards[shard], os.O_RDONLY | os.O_CLOEXEC))
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


def _read_range(descriptor: int, offset: int, size: int) -> bytearray:
    """Read up to `size` bytes; fewer only where the file ends (network file systems may answer in pieces)."""
    content = bytearray(size)
    view = memoryview(content)
    done = 0
    while done < size:
        count = os.preadv(descriptor, [view[done:]], offset + done)
        if count == 0:
            view.release()
            del content[done:]
            break
        done += count
    return content
