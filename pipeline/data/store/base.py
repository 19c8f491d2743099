"""What a store does for the reader: give byte ranges of a split's shards, many at a time."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol


class Range(NamedTuple):
    """Bytes start … stop - 1 of a shard."""

    shard: int
    """Position in the split's list of shards."""
    start: int
    stop: int


@dataclass(frozen=True)
class ReadFailure:
    """Why there are no bytes."""

    detail: str


Content = bytes | ReadFailure


class Reads(Protocol):
    """Ranges that were asked for together; any number of threads may take them."""

    def take(self, numbers: Sequence[int]) -> list[Content]:
        """Wait for some of the ranges, given by their positions among those asked for; fewer bytes than asked for only
        where a file ends."""


class Store(Protocol):
    """Where shards are read from; any number of threads may use it."""

    def begin(self, ranges: Sequence[Range]) -> Reads:
        """Ask for some ranges; what neighbours can share is read once."""

    def again(self, wanted: Range) -> Content | None:
        """Read a range anew whose bytes proved wrong, past all copies; None where that would give the same bytes."""

    def stop(self) -> None:
        """Let whoever waits for an answer give up soon: nobody will use what is read."""

    def close(self) -> None:
        """Free what is held; no thread reads any more."""


@dataclass
class StoreStats:
    """What a remote store was asked for since the reader was made; where time goes is in `stage_times`."""

    num_requests: int = 0
    """Requests to a remote store, repeated ones included."""
    num_retries: int = 0
    """Requests that repeated another."""
    bytes_fetched: int = 0
    """Bytes that came from a remote store, with the gaps between joined ranges."""
    cache_hits: int = 0
    """Ranges that were in the local cache."""
    cache_misses: int = 0
    """Ranges that were not."""
    num_not_cached: int = 0
    """Pieces that the cache could not keep: its disk is full, or it may not be written."""
    num_read_again: int = 0
    """Samples whose bytes proved wrong and were fetched anew."""


class Counters:
    """A `StoreStats` that threads add to."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stats = StoreStats()

    def add(self, **amounts: float) -> None:
        """Add to counters by name."""
        with self._lock:
            for name, amount in amounts.items():
                setattr(self._stats, name, getattr(self._stats, name) + amount)

    def snapshot(self) -> StoreStats:
        """A copy of the present state."""
        with self._lock:
            return replace(self._stats)
