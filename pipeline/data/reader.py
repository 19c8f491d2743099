"""Random access to the samples of a split: from a row of the index to the JPEG's bytes, checked.

One sample that cannot be read is an answer, not an exception: a data set of millions of photos on a shared store has
some every day, and the caller masks and counts them.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import numpy.typing as npt

from pipeline.data.manifest import SplitIndex
from pipeline.data.retry import RetryPolicy
from pipeline.data.stage_times import CRC, STORE, StageTimes
from pipeline.data.store.base import Content, Counters, Range, ReadFailure, Store, StoreStats
from pipeline.data.store.opening import open_store

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


class Reader:
    """Reads JPEG bytes by row of a split's index; any number of threads may read at a time.

    Args:
        split: the samples; a remote one is read through its cache, if it has one.
        times: where to count time.
        policy: how patiently a remote store is asked.

    Raises:
        UserError: a cache that cannot be used.
    """

    def __init__(self, split: SplitIndex, times: StageTimes | None = None, policy: RetryPolicy | None = None) -> None:
        self._split = split
        self.times = times or StageTimes()
        self._withdrawn = frozenset(split.withdrawn.tolist())
        self._counters = Counters()
        self._store = open_store(split, policy or RetryPolicy(), self._counters)

    @property
    def stats(self) -> StoreStats:
        """What reading has cost so far."""
        return self._counters.snapshot()

    def by_place(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Give the permutation that visits rows in the order of their place on disk, [B] int64."""
        return np.lexsort((self._split.jpg_offset[rows], self._split.shard[rows]))

    def begin(self, rows: npt.NDArray[np.int64]) -> SampleReads:
        """Ask for the samples of some rows, [B] int64; a remote store begins at once and joins neighbours."""
        split = self._split
        # one look into each column for all of them: a look costs as much as a short read
        shards, starts = split.shard[rows].tolist(), split.jpg_offset[rows]
        stops = (starts + split.jpg_size[rows]).tolist()
        ranges = list(map(Range, shards, starts.tolist(), stops))
        return SampleReads(self, self._store, rows.tolist(), ranges, split.jpg_crc32[rows].tolist())

    def read_many(self, rows: npt.NDArray[np.int64]) -> list[bytes | BadSample]:
        """Read the bytes of some samples, as `read` each: quickest in the order of `by_place`.

        Raises:
            UserError: the store cannot be used at all: see `SampleReads.take`.
        """
        return self.begin(rows).take(range(len(rows)))

    def read(self, row: int) -> bytes | BadSample:
        """Read the bytes of one sample and check their CRC-32."""
        return self.read_many(np.array([row]))[0]

    def is_withdrawn(self, row: int) -> bool:
        """Whether a sample must not be shown."""
        return row in self._withdrawn

    def bad_sample(self, row: int, reason: str, detail: str) -> BadSample:
        """Name a sample that could not be used."""
        path = self._split.shards[int(self._split.shard[row])]
        return BadSample(int(self._split.sample_id[row]), f"{path.parent.name}/{path.name}", reason, detail)

    def stop(self) -> None:
        """Let threads that wait for a store give up soon; what they read then may be bad samples."""
        self._store.stop()

    def close(self) -> None:
        """Close all tars; the caller has seen to it that no thread reads any more."""
        self._store.close()

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class SampleReads:
    """Samples that were asked for together: see `Reader.begin`. Withdrawn ones are not asked for."""

    def __init__(self, reader: Reader, store: Store, rows: list[int], ranges: list[Range], crcs: list[int]) -> None:
        self._reader, self._store = reader, store
        self._rows, self._ranges, self._crcs = rows, ranges, crcs
        shown = [slot for slot, row in enumerate(rows) if not reader.is_withdrawn(row)]
        self._numbers = dict(zip(shown, range(len(shown)), strict=True))
        self._reads = store.begin(ranges if len(shown) == len(rows) else [ranges[slot] for slot in shown])

    def take(self, slots: Sequence[int]) -> list[bytes | BadSample]:
        """Wait for some samples, by their positions among the rows asked for, and check their CRC-32.

        Bytes of a remote store that prove wrong are fetched once more, past all copies.

        Raises:
            UserError: the store cannot be used at all: access denied, no ranges, objects of another data set.
        """
        shown = [slot for slot in slots if slot in self._numbers]
        with self._reader.times.stage(STORE):
            contents = self._reads.take([self._numbers[slot] for slot in shown])
        with self._reader.times.stage(CRC):
            found = {slot: self._checked(slot, content) for slot, content in zip(shown, contents, strict=True)}
        if len(shown) < len(slots):
            hidden = (slot for slot in slots if slot not in self._numbers)
            found |= {slot: self._reader.bad_sample(self._rows[slot], WITHDRAWN, "") for slot in hidden}
        return [found[slot] for slot in slots]

    def _checked(self, slot: int, content: Content) -> bytes | BadSample:
        fault = self._fault(slot, content)
        if fault is None:
            assert isinstance(content, bytes)
            return content
        if not isinstance(content, ReadFailure):
            content = self._store.again(self._ranges[slot]) or content
            fault = self._fault(slot, content)
            if fault is None:
                assert isinstance(content, bytes)
                return content
        return self._reader.bad_sample(self._rows[slot], *fault)

    def _fault(self, slot: int, content: Content) -> tuple[str, str] | None:
        """Reason and detail of what is wrong with some bytes."""
        if isinstance(content, ReadFailure):
            return IO_ERROR, content.detail
        _, start, stop = self._ranges[slot]
        if len(content) < stop - start:
            return SHORT_READ, f"{len(content)} of {stop - start} bytes at offset {start}"
        found, expected = zlib.crc32(content), self._crcs[slot]
        if found != expected:
            return CRC_MISMATCH, f"{found:08x} at offset {start}, expected {expected:08x}"
        return None
