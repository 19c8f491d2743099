"""Which store a split is read from, and whether an order suits it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from pipeline.config.cache import MIB, CacheConfig
from pipeline.config.errors import UserError
from pipeline.config.location import RemotePath
from pipeline.config.order import OrderConfig, StreamingOrderConfig
from pipeline.data.manifest import SplitIndex
from pipeline.data.mix import MixedSplit
from pipeline.data.retry import RetryPolicy
from pipeline.data.store.base import Counters, Store
from pipeline.data.store.local import LocalStore
from pipeline.data.store.mixed_store import MixedStore


def open_store(split: SplitIndex, policy: RetryPolicy, counters: Counters) -> Store:
    """The store of a split: local files, or remote ones through its cache if it has one.

    Raises:
        UserError: a cache that cannot be used.
    """
    if isinstance(split, MixedSplit):
        return MixedStore([open_store(part, policy, counters) for part in split.parts], split.first_shards)
    if not isinstance(split.root, RemotePath):
        return LocalStore(cast("list[Path]", split.shards))
    from pipeline.data.store.remote_store import CachedStore, RemoteStore

    if split.cache is None:
        return RemoteStore(split, policy, counters)
    return CachedStore(split, split.cache, policy, counters)


def check_stores(splits: Sequence[tuple[SplitIndex, int]], order: OrderConfig) -> None:
    """Refuse to train in an order that needs a request a photo, or a piece of the cache a photo.

    Args:
        splits: what is trained on, each with the bytes of all its tars; they share a cache.
        order: of training.

    Raises:
        UserError: a remote split whose cache is missing or too small; names the size it would take.
    """
    remote = [(split, num_bytes) for split, num_bytes in splits if isinstance(split.root, RemotePath)]
    if not remote:
        return
    needed = sum(_needed_bytes(split, num_bytes, order) for split, num_bytes in remote)
    cache = remote[0][0].cache
    if cache is not None and cache.max_bytes >= needed:
        return
    whole = "the whole split" if len(remote) == 1 else f"the {len(remote)} remote splits"
    if isinstance(order, StreamingOrderConfig):
        holds = "two windows of the streaming order"
        remedy = f"set data.cache.path=DIR data.cache.max_bytes={needed}, or a smaller data.order.window_blocks"
    else:
        holds = whole
        remedy = (
            f"set data.cache.path=DIR data.cache.max_bytes={needed}, or data.order.kind=streaming, "
            "which needs room for two of its windows only"
        )
    if cache is None:
        where = ", ".join(str(split.root) for split, _ in remote)
        num_photos = sum(len(split) for split, _ in remote)
        raise UserError(
            "data.cache",
            f"null, while order {order.kind} over {where} needs one request a photo ({num_photos:,} an epoch)",
            f"a cache of {needed:,} bytes, which holds {holds}",
            remedy,
        )
    raise UserError(
        "data.cache.max_bytes",
        f"{int(cache.max_bytes):,}, while order {order.kind} would fetch pieces again and again",
        f"{needed:,} or more, which holds {holds}",
        remedy,
    )


def _needed_bytes(split: SplitIndex, num_bytes: int, order: OrderConfig) -> int:
    """Bytes of the cache with which nothing is fetched twice an epoch."""
    if not isinstance(order, StreamingOrderConfig):
        return num_bytes
    piece_bytes = _piece_bytes(split.cache, num_bytes, len(split.shards))
    block_bytes = num_bytes * order.block_photos // max(1, len(split))
    # a run of photos begins and ends within a piece
    return min(num_bytes, 2 * order.window_blocks * (block_bytes + piece_bytes))


def _piece_bytes(cache: CacheConfig | None, num_bytes: int, num_shards: int) -> int:
    if cache is not None and cache.granularity == "shard":
        return num_bytes // max(1, num_shards)
    return (CacheConfig.model_fields["block_mib"].default if cache is None else cache.block_mib) * MIB
