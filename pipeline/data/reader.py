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
from itertools import groupby
from operator import itemgetter
from types import TracebackType

import numpy as np
import numpy.typing as npt

from pipeline.data.manifest import SplitIndex
from pipeline.data.stage_times import CRC, STORE, StageTimes

IO_ERROR = "io_error"
SHORT_READ = "short_read"
CRC_MISMATCH = "crc_mismatch"
UNDECODABLE = "undecodable"
SIZE_MISMATCH = "size_mismatch"
WITHDRAWN = "withdrawn"
"""Not a fault: such slots are masked and counted, but never stop a run."""

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
    """One of `io_error`, `short_read`, `crc_mismatch`, `undecodable`, `size_mismatch`, `withdrawn`."""
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

    Args:
        split: the samples.
        times: where to count time.
    """

    def __init__(self, split: SplitIndex, times: StageTimes | None = None) -> None:
        self._split = split
        self._times = times or StageTimes()
        self._withdrawn = frozenset(split.withdrawn.tolist())
        self._lock = threading.Lock()
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()

    def by_place(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Give the permutation that visits rows in the order of their place on disk, [B] int64."""
        return np.lexsort((self._split.jpg_offset[rows], self._split.shard[rows]))

    def read(self, row: int) -> bytes | BadSample:
        """Read the bytes of one sample and check their CRC-32."""
        return self.read_many(np.array([row]))[0]

    def read_many(self, rows: npt.NDArray[np.int64]) -> list[bytes | BadSample]:
        """Read the bytes of some samples, as `read` each: quickest in the order of `by_place`."""
        split = self._split
        # one look into each column for all of them: a look costs as much as a short read
        shards, offsets, sizes = (column[rows].tolist() for column in (split.shard, split.jpg_offset, split.jpg_size))
        found: list[bytes | BadSample] = []
        with self._times.stage(STORE):
            for shard, of_shard in groupby(zip(rows.tolist(), shards, offsets, sizes, strict=True), itemgetter(1)):
                places = list(of_shard)
                try:
                    with self._descriptor(shard) as descriptor:
                        found += [self._read(descriptor, row, offset, size) for row, _, offset, size in places]
                except OSError as error:  # the tar cannot be opened
                    found += [self.bad_sample(row, IO_ERROR, error.strerror or str(error)) for row, *_ in places]
        with self._times.stage(CRC):
            for place, (content, expected) in enumerate(zip(found, split.jpg_crc32[rows].tolist(), strict=True)):
                if not isinstance(content, BadSample) and (crc32 := zlib.crc32(content)) != expected:
                    detail = f"{crc32:08x} at offset {offsets[place]}, expected {expected:08x}"
                    found[place] = self.bad_sample(int(rows[place]), CRC_MISMATCH, detail)
        return found

    def _read(self, descriptor: int, row: int, offset: int, size: int) -> bytes | BadSample:
        if row in self._withdrawn:
            return self.bad_sample(row, WITHDRAWN, "")
        try:
            content = _read_range(descriptor, offset, size)
        except OSError as error:
            return self.bad_sample(row, IO_ERROR, error.strerror or str(error))
        if len(content) < size:
            return self.bad_sample(row, SHORT_READ, f"{len(content)} of {size} bytes at offset {offset}")
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


def _read_range(descriptor: int, offset: int, size: int) -> bytes:
    """Read up to `size` bytes; fewer only where the file ends (network file systems may answer in pieces)."""
    content = os.pread(descriptor, size, offset)
    while len(content) < size:
        following = os.pread(descriptor, size - len(content), offset + len(content))
        if not following:
            break
        content += following
    return content
