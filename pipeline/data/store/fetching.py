"""Ranges of a split's remote shards: bounded attempts, and always of the objects that the data set describes."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from pipeline.config.location import RemotePath
from pipeline.data.dataset_format import ShardCommit
from pipeline.data.manifest import SplitIndex
from pipeline.data.remote import Version, fetch_range
from pipeline.data.retry import FetchError, RetryPolicy, retry
from pipeline.data.store.base import Counters, Range


@dataclass
class _RemoteShard:
    commit: ShardCommit
    version: Version


class ShardFetcher:
    """Fetches ranges; any number of threads may.

    Args:
        split: whose shards.
        policy: how often and how patiently.
        counters: of requests and bytes.
    """

    def __init__(self, split: SplitIndex, policy: RetryPolicy, counters: Counters) -> None:
        self._split = split
        self._policy = policy
        self._counters = counters
        self._lock = threading.Lock()
        self._shards: dict[int, _RemoteShard] = {}
        self._stop = threading.Event()

    def stop(self) -> None:
        """Begin no more requests, and wait for no more pauses."""
        self._stop.set()

    def commit(self, shard: int) -> ShardCommit:
        """The shard's commit record: its size and hash.

        Raises:
            UserError: it cannot be fetched.
        """
        return self._shard(shard).commit

    def fetch(self, wanted: Range) -> bytes:
        """Fetch a range, asking again where that may help.

        Raises:
            FetchError: all attempts failed, or there is no such object; names URL, attempts and the last cause.
            UserError: the object is not what the data set describes, access is denied, or its server ignores ranges.
        """
        place = self._split.shards[wanted.shard]
        if self._stop.is_set():
            raise FetchError(f"{place}: the reader was stopped")
        assert isinstance(place, RemotePath)
        shard = self._shard(wanted.shard)

        def request() -> tuple[bytes, Version]:
            self._counters.add(num_requests=1)
            return fetch_range(place, wanted.start, wanted.stop, shard.version, self._policy)

        try:
            content, version = retry(
                str(place), self._policy, request, lambda: self._counters.add(num_retries=1), self._stop
            )
        except FileNotFoundError:
            raise FetchError(f"{place}: not found") from None
        shard.version = version
        self._counters.add(bytes_fetched=len(content))
        return content

    def forget_version(self, shard: int) -> None:
        """Look again, at the next request, whether a shard is still the object that it was."""
        known = self._shard(shard)
        known.version = Version(known.commit.tar_bytes, known.version.etag)

    def _shard(self, number: int) -> _RemoteShard:
        with self._lock:
            known = self._shards.get(number)
        if known is None:
            commit = self._split.commit(number)
            with self._lock:
                known = self._shards.setdefault(number, _RemoteShard(commit, Version(commit.tar_bytes, "")))
        return known
