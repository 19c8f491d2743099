"""Random access to the samples of a split: from a row of the index to the JPEG's bytes, checked.

One sample that cannot be read is an answer, not an exception: a data set of millions of photos on a shared store has
some every day, and the caller masks and counts them.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from types import TracebackType

import numpy as np
import numpy.typing as npt

from pipeline.data.manifest import SplitIndex
from pipeline.data.stage_times import CRC, STORE, StageTimes
from pipeline.data.store.shards import LocalShards, Range, ShardBytes

IO_ERROR = "io_error"
SHORT_READ = "short_read"
CRC_MISMATCH = "crc_mismatch"
UNDECODABLE = "undecodable"
SIZE_MISMATCH = "size_mismatch"
WITHDRAWN = "withdrawn"
"""Not a fault: such slots are masked and counted, but never stop a run."""

_MIN_BAD_SAMPLES_TO_STOP = 10


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


def open_shards(split: SplitIndex) -> ShardBytes:
    """The store that a split's tars are in."""
    if split.remote is None:
        return LocalShards(split.shards)
    from pipeline.data.store.remote import RemoteShards  # fsspec takes a while to import

    names = [f"{path.parent.name}/{path.name}" for path in split.shards]
    return RemoteShards(split.remote, names, split.digest)


class Reader:
    """Reads JPEG bytes by row of a split's index; any number of threads may read at a time.

    Args:
        split: the samples.
        times: where to count time.
    """

    def __init__(self, split: SplitIndex, times: StageTimes | None = None) -> None:
        self._split = split
        self._times = times or StageTimes()
        self._withdrawn = frozenset(split.withdrawn.tolist())
        self._bytes = open_shards(split)

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
                contents = self._bytes.read(shard, [Range(offset, size) for _, _, offset, size in places])
                found += [
                    self._checked(row, content, offset, size)
                    for (row, _, offset, size), content in zip(places, contents, strict=True)
                ]
        with self._times.stage(CRC):
            for place, (content, expected) in enumerate(zip(found, split.jpg_crc32[rows].tolist(), strict=True)):
                if not isinstance(content, BadSample) and zlib.crc32(content) != expected:
                    row, wanted = int(rows[place]), Range(offsets[place], sizes[place])
                    found[place] = self._second_try(row, shards[place], wanted, expected)
        return found

    def _checked(self, row: int, content: bytes | OSError, offset: int, size: int) -> bytes | BadSample:
        if row in self._withdrawn:
            return self.bad_sample(row, WITHDRAWN, "")
        if isinstance(content, OSError):
            return self.bad_sample(row, IO_ERROR, content.strerror or str(content))
        if len(content) < size:
            return self.bad_sample(row, SHORT_READ, f"{len(content)} of {size} bytes at offset {offset}")
        return content

    def _second_try(self, row: int, shard: int, wanted: Range, expected: int) -> bytes | BadSample:
        """Bytes may have been spoilt on their way, or where they were kept."""
        content = self._checked(row, self._bytes.read_afresh(shard, wanted), *wanted)
        if isinstance(content, BadSample) or (crc32 := zlib.crc32(content)) == expected:
            return content
        return self.bad_sample(row, CRC_MISMATCH, f"{crc32:08x} at offset {wanted.offset}, expected {expected:08x}")

    def bad_sample(self, row: int, reason: str, detail: str) -> BadSample:
        """Name a sample that could not be used."""
        path = self._split.shards[int(self._split.shard[row])]
        return BadSample(int(self._split.sample_id[row]), f"{path.parent.name}/{path.name}", reason, detail)

    def close(self) -> None:
        """Close all tars; the caller has seen to it that no thread reads any more."""
        self._bytes.close()

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
