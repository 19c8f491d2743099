"""Shards of an object store or a web server, through fsspec: range requests, retries, and a cache of blocks.

Neighbouring stretches are fetched in one request. What fails is tried again with growing pauses; what fails for good is
an error that names the URL. With a cache, whole blocks are fetched, and a stretch is read from the blocks on disk.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pipeline.data.store.cache import BlockCache
from pipeline.data.store.location import RemoteData, open_store
from pipeline.data.store.shards import Range

ATTEMPTS = 5
FIRST_PAUSE_S = 0.2
# A gap that costs less to fetch than another request
_JOIN_GAP_BYTES = 64 << 10
_JOIN_MAX_BYTES = 16 << 20
_T = TypeVar("_T")


@dataclass
class StoreStats:
    """What reading from a store took."""

    requests: int = 0
    fetched_bytes: int = 0
    retries: int = 0
    cache_hits: int = 0
    cache_misses: int = 0


class RemoteShards:
    """See `shards.ShardBytes`.

    Args:
        remote: the data set's address, and its cache.
        names: each shard's path below it, `train/train-000000.tar`.
        digest: of the data set: what is kept of another version is never read.
    """

    def __init__(self, remote: RemoteData, names: Sequence[str], digest: str) -> None:
        self._fs, self._root = open_store(remote.url)
        self._url, self._names = remote.url, names
        self._cache = None if remote.cache is None else BlockCache(remote.cache, digest)
        self._sizes: dict[int, int] = {}
        self._lock = threading.Lock()
        self._fetching: dict[tuple[int, int], threading.Lock] = {}
        self.stats = StoreStats()

    def read(self, shard: int, ranges: Sequence[Range]) -> list[bytes | OSError]:
        if self._cache is not None:
            return [self._read_cached(shard, wanted) for wanted in ranges]
        found: list[bytes | OSError] = [OSError("not read")] * len(ranges)
        for members in _joined(ranges):
            start = ranges[members[0]].offset
            stop = max(ranges[member].offset + ranges[member].size for member in members)
            try:
                content: bytes | OSError = self._fetch(shard, start, stop)
            except OSError as error:
                content = error
            for member in members:
                offset, size = ranges[member]
                found[member] = (
                    content if isinstance(content, OSError) else content[offset - start : offset - start + size]
                )
        return found

    def read_afresh(self, shard: int, wanted: Range) -> bytes | OSError:
        if self._cache is not None:
            for block in self._blocks(wanted):
                self._cache.drop(self._names[shard], block)
        return self.read(shard, [wanted])[0]

    def close(self) -> None:
        """Hold nothing: fsspec keeps its connections for others."""

    def _read_cached(self, shard: int, wanted: Range) -> bytes | OSError:
        """From blocks on disk, fetched first where they are missing."""
        assert self._cache is not None
        parts: list[bytes] = []
        try:
            for block in self._blocks(wanted):
                start = 0 if self._cache.block_bytes is None else block * self._cache.block_bytes
                begin = max(wanted.offset - start, 0)
                end = wanted.offset + wanted.size - start
                if self._cache.block_bytes is not None:
                    end = min(end, self._cache.block_bytes)
                parts.append(self._part_of_block(shard, block, begin, end))
        except OSError as error:
            return error
        return b"".join(parts)

    def _part_of_block(self, shard: int, block: int, begin: int, end: int) -> bytes:
        assert self._cache is not None
        name = self._names[shard]
        content = self._cache.read(name, block, begin, end)
        if content is None:
            with self._lock:
                lock = self._fetching.setdefault((shard, block), threading.Lock())
            with lock:  # other threads that want the same block wait for it instead of fetching it too
                content = self._cache.read(name, block, begin, end)
                if content is None:
                    self._count(cache_misses=1)
                    whole = self._fetch_block(shard, block)
                    self._cache.write(name, block, whole)
                    return whole[begin:end]
        self._count(cache_hits=1)
        return content

    def _fetch_block(self, shard: int, block: int) -> bytes:
        assert self._cache is not None
        size = self._size(shard)
        if self._cache.block_bytes is None:
            return self._fetch(shard, 0, size)
        start = block * self._cache.block_bytes
        return self._fetch(shard, start, min(start + self._cache.block_bytes, size))

    def _blocks(self, wanted: Range) -> range:
        assert self._cache is not None
        if self._cache.block_bytes is None:
            return range(1)
        last = (wanted.offset + max(1, wanted.size) - 1) // self._cache.block_bytes
        return range(wanted.offset // self._cache.block_bytes, last + 1)

    def _size(self, shard: int) -> int:
        if shard not in self._sizes:
            found = self._with_retries(shard, lambda path: self._fs.info(path)["size"])
            if found is None:
                raise OSError(f"{self._address(shard)}: the server does not say its size")
            self._sizes[shard] = int(found)
        return self._sizes[shard]

    def _fetch(self, shard: int, start: int, stop: int) -> bytes:
        """Bytes start … stop - 1, all of them."""
        if stop <= start:
            return b""

        def get(path: str) -> bytes:
            content: bytes = self._fs.cat_file(path, start=start, end=stop)
            if len(content) > stop - start:
                raise _Refused("the server ignores range requests: it sent more than was asked for")
            if len(content) < stop - start:
                raise OSError(f"{len(content)} of {stop - start} bytes at {start}")
            return content

        content = self._with_retries(shard, get)
        self._count(fetched_bytes=len(content))
        return content

    def _with_retries(self, shard: int, ask: Callable[[str], _T]) -> _T:
        """Ask the store, again after a pause where that may help.

        Raises:
            OSError: naming the URL, the number of attempts and the last cause.
        """
        path, last = f"{self._root}/{self._names[shard]}", ""
        for attempt in range(ATTEMPTS):
            if attempt:
                self._count(retries=1)
                # with jitter: ranks that failed together must not come back together
                time.sleep(FIRST_PAUSE_S * 2 ** (attempt - 1) * (0.5 + random.random()))
            self._count(requests=1)
            try:
                return ask(path)
            except (FileNotFoundError, PermissionError, _Refused) as error:
                raise OSError(f"{self._address(shard)}: {_cause(error)}") from None
            except (TimeoutError, OSError, RuntimeError, ValueError) as error:
                last = _cause(error)
            except Exception as error:
                if not _is_of_network(error):
                    raise
                last = _cause(error)
        raise OSError(f"{self._address(shard)}: failed {ATTEMPTS} times, last: {last}")

    def _address(self, shard: int) -> str:
        return f"{self._url.rstrip('/')}/{self._names[shard]}"

    def _count(self, **more: int) -> None:
        with self._lock:
            for name, number in more.items():
                setattr(self.stats, name, getattr(self.stats, name) + number)


class _Refused(OSError):
    """An answer that another attempt would not change."""


def _joined(ranges: Sequence[Range]) -> list[list[int]]:
    """Numbers of ranges, those together that one request should fetch."""
    groups: list[list[int]] = []
    start = stop = -1
    for number in sorted(range(len(ranges)), key=lambda number: ranges[number].offset):
        offset, size = ranges[number]
        if groups and offset - stop <= _JOIN_GAP_BYTES and offset + size - start <= _JOIN_MAX_BYTES:
            groups[-1].append(number)
            stop = max(stop, offset + size)
        else:
            groups.append([number])
            start, stop = offset, offset + size
    return groups


def _is_of_network(error: Exception) -> bool:
    """Clients of stores bring errors of their own, which are no OSErrors."""
    module = type(error).__module__.partition(".")[0]
    return module in ("aiohttp", "botocore", "aiobotocore", "s3fs", "gcsfs", "fsspec", "urllib3", "requests")


def _cause(error: BaseException) -> str:
    text: Any = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
