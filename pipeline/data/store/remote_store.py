"""Shards behind a URL: joined range requests, or pieces that a local cache keeps.

Requests run on threads of their own, many at a time, from the moment a micro-batch is planned: what counts is how many
are under way, since each spends most of its time waiting.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from pipeline.config.cache import MIB, CacheConfig
from pipeline.config.errors import UserError
from pipeline.data.manifest import SplitIndex
from pipeline.data.retry import FetchError, RetryPolicy
from pipeline.data.store.base import Content, Counters, Range, ReadFailure
from pipeline.data.store.disk_cache import DiskCache
from pipeline.data.store.fetching import ShardFetcher
from pipeline.data.store.joining import MAX_REQUEST_BYTES, join_ranges

# Requests under way at a time, of each rank.
_NUM_REQUESTS = 16

_Parts = dict[Range, bytes]


class _Pending(Protocol):
    def result(self) -> _Parts:
        """Wait for the parts, or raise why there are none."""


@dataclass(frozen=True)
class _InCache:
    """A part that was in the cache a moment ago: read when it is taken, by who takes it."""

    store: CachedStore
    piece: Range
    part: Range

    def result(self) -> _Parts:
        return self.store.read_piece(self.piece, [self.part])


class RemoteStore:
    """See `base.Store`; without a cache.

    Args:
        split: the samples.
        policy: how often and how patiently a request is made.
        counters: to add to.
    """

    def __init__(self, split: SplitIndex, policy: RetryPolicy, counters: Counters) -> None:
        self._counters = counters
        self._fetcher = ShardFetcher(split, policy, counters)
        self._pool = ThreadPoolExecutor(_NUM_REQUESTS, thread_name_prefix="store")

    def begin(self, ranges: Sequence[Range]) -> RemoteReads:
        """Start the requests, neighbours joined."""
        sources: dict[int, list[_Pending]] = {}
        for joined in join_ranges(ranges):
            own = [ranges[number] for number in joined.numbers]
            future: _Pending = self._pool.submit(self._fetch, joined.span, own)
            sources |= {number: [future] for number in joined.numbers}
        return RemoteReads({number: ([ranges[number]], futures) for number, futures in sources.items()})

    def again(self, wanted: Range) -> Content:
        """Fetch a range by itself, from the store."""
        self._counters.add(num_read_again=1)
        try:
            self._fetcher.forget_version(wanted.shard)
            return self._fetcher.fetch(wanted)
        except FetchError as error:
            return ReadFailure(str(error))

    def stop(self) -> None:
        """Begin no more requests: who waits for one gets a failure soon."""
        self._fetcher.stop()

    def close(self) -> None:
        """Drop what waits, finish what is under way."""
        self.stop()
        self._pool.shutdown(cancel_futures=True)

    def _fetch(self, span: Range, wanted: Sequence[Range]) -> _Parts:
        content = self._fetcher.fetch(span)
        return {part: content[part.start - span.start : part.stop - span.start] for part in wanted}


class CachedStore(RemoteStore):
    """A remote store whose pieces, blocks or whole shards, a local cache keeps.

    Raises:
        UserError: a bound that does not hold one piece, or a folder that cannot be used.
    """

    def __init__(self, split: SplitIndex, config: CacheConfig, policy: RetryPolicy, counters: Counters) -> None:
        super().__init__(split, policy, counters)
        self._digest, self._split_name = split.digest, split.split
        self._names = [path.stem for path in split.shards]
        self._block_bytes = config.block_mib * MIB if config.granularity == "block" else None
        self._max_bytes = int(config.max_bytes)
        if self._block_bytes is not None and self._block_bytes > self._max_bytes:
            raise _too_small(self._max_bytes, self._block_bytes)
        self._cache = DiskCache(config.path, self._max_bytes)

    def begin(self, ranges: Sequence[Range]) -> RemoteReads:
        """Start fetching the pieces that are not in the cache."""
        wanted = [list(self._parts(whole)) for whole in ranges]
        by_piece: dict[Range, list[Range]] = defaultdict(list)
        for parts in wanted:
            for part in parts:
                by_piece[self._piece(part)].append(part)
        pending: dict[Range, _Pending] = {}
        for piece, parts in by_piece.items():
            if self._cache.holds(self._key(piece), piece.stop - piece.start):
                pending |= {part: _InCache(self, piece, part) for part in parts}
            else:
                pending |= dict.fromkeys(parts, self._pool.submit(self.read_piece, piece, parts))
        return RemoteReads({number: (parts, [pending[part] for part in parts]) for number, parts in enumerate(wanted)})

    def again(self, wanted: Range) -> Content:
        """Forget the pieces that hold a range, and fetch it by itself."""
        for part in self._parts(wanted):
            self._cache.remove(self._key(self._piece(part)))
        return super().again(wanted)

    def read_piece(self, piece: Range, parts: Sequence[Range]) -> _Parts:
        """Parts of a piece, from the cache or through it."""
        found = self._cached(piece, parts)
        if found is None:
            with self._cache.fetching(self._key(piece)):
                found = self._cached(piece, parts)  # another process may have fetched it meanwhile
                if found is None:
                    self._counters.add(cache_misses=len(parts))
                    return self._fetch_piece(piece, parts)
        self._counters.add(cache_hits=len(parts))
        return found

    def _cached(self, piece: Range, parts: Sequence[Range]) -> _Parts | None:
        limits = [(part.start - piece.start, part.stop - piece.start) for part in parts]
        contents = self._cache.read(self._key(piece), piece.stop - piece.start, limits)
        return None if contents is None else dict(zip(parts, contents, strict=True))

    def _fetch_piece(self, piece: Range, parts: Sequence[Range]) -> _Parts:
        """Fetch a piece slice by slice into the cache; where that cannot keep it, only what was asked for."""
        found: dict[Range, list[bytes]] = {part: [] for part in parts}

        def slices() -> Iterator[bytes]:
            for start in range(piece.start, piece.stop, MAX_REQUEST_BYTES):
                stop = min(piece.stop, start + MAX_REQUEST_BYTES)
                content = self._fetcher.fetch(Range(piece.shard, start, stop))
                for part in found:  # each once, also one that was asked for twice
                    if part.start < stop and start < part.stop:
                        found[part].append(content[max(0, part.start - start) : part.stop - start])
                yield content

        if self._cache.put(self._key(piece), piece.stop - piece.start, slices()):
            return {part: b"".join(contents) for part, contents in found.items()}
        self._counters.add(num_not_cached=1)
        joined = join_ranges(parts)
        results: _Parts = {}
        for request in joined:
            results |= self._fetch(request.span, [parts[number] for number in request.numbers])
        return results

    def _parts(self, wanted: Range) -> Iterator[Range]:
        """Cut a range where pieces meet."""
        start = wanted.start
        while start < wanted.stop:
            stop = min(wanted.stop, self._piece(Range(wanted.shard, start, start + 1)).stop)
            if stop <= start:  # the index reaches beyond the shard's end
                stop = wanted.stop
            yield Range(wanted.shard, start, stop)
            start = stop

    def _piece(self, part: Range) -> Range:
        """The piece that a part is of."""
        size = self._fetcher.commit(part.shard).tar_bytes
        if self._block_bytes is None:
            if size > self._max_bytes:
                raise _too_small(self._max_bytes, size)
            return Range(part.shard, 0, size)
        first = part.start // self._block_bytes * self._block_bytes
        return Range(part.shard, first, min(size, first + self._block_bytes))

    def _key(self, piece: Range) -> str:
        """Names content, not place: a new version has another digest, and mirrors of a data set share entries."""
        return f"{self._digest}/{self._split_name}/{self._names[piece.shard]}/{piece.start}-{piece.stop}"


class RemoteReads:
    """See `base.Reads`.

    Args:
        sources: for each range, by its position, the parts that it is put together from and who brings each.
    """

    def __init__(self, sources: Mapping[int, tuple[list[Range], list[_Pending]]]) -> None:
        self._sources = sources

    def take(self, numbers: Sequence[int]) -> list[Content]:
        """See `base.Reads`."""
        return [self._take(number) for number in numbers]

    def _take(self, number: int) -> Content:
        parts, futures = self._sources[number]
        try:
            contents = [future.result()[part] for part, future in zip(parts, futures, strict=True)]
        except FetchError as error:
            return ReadFailure(str(error))
        return contents[0] if len(contents) == 1 else b"".join(contents)


def _too_small(max_bytes: int, piece_bytes: int) -> UserError:
    return UserError(
        "data.cache.max_bytes",
        f"{max_bytes:,}",
        f"{piece_bytes:,} or more, the size of one piece",
        "or a smaller data.cache.block_mib, or data.cache.granularity=block",
    )
