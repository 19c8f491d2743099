"""Which ranges share a request, and which orders suit a remote store."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.cache import CacheConfig
from pipeline.config.errors import UserError
from pipeline.config.location import RemotePath
from pipeline.config.order import IdentityBalancedConfig, OrderConfig, PlainOrderConfig, StreamingOrderConfig
from pipeline.data.store.base import Range
from pipeline.data.store.joining import MAX_GAP_BYTES, MAX_REQUEST_BYTES, join_ranges
from pipeline.data.store.opening import check_stores
from tests.splits import make_split

SPLIT_BYTES = 100_000_000_000


@given(
    st.lists(
        st.builds(
            lambda shard, start, size: Range(shard, start, start + size),
            st.integers(0, 2),
            st.integers(0, 40_000_000),
            st.integers(1, 10_000_000),
        ),
        max_size=60,
    )
)
def test_each_range_is_in_one_request_within_the_limits(ranges: list[Range]) -> None:
    joined = join_ranges(ranges)
    assert sorted(number for request in joined for number in request.numbers) == list(range(len(ranges)))
    for request in joined:
        own = [ranges[number] for number in request.numbers]
        assert {part.shard for part in own} == {request.span.shard}
        assert request.span.start == min(part.start for part in own)
        assert request.span.stop == max(part.stop for part in own)
        assert len(own) == 1 or request.span.stop - request.span.start <= MAX_REQUEST_BYTES
        reach = own[0].stop
        for part in own[1:]:
            assert part.start - reach <= MAX_GAP_BYTES
            reach = max(reach, part.stop)


def test_neighbours_share_as_few_requests_as_fit() -> None:
    photos = [Range(0, 9_000 * number, 9_000 * number + 8_000) for number in range(2000)]
    assert len(join_ranges(photos)) == 3, "18 MB in requests of 8 MiB"
    far = [Range(0, (MAX_GAP_BYTES + 9_000) * number, (MAX_GAP_BYTES + 9_000) * number + 8_000) for number in range(20)]
    assert len(join_ranges(far)) == 20


def cache(size: int, **options: object) -> CacheConfig:
    return CacheConfig.model_validate({"path": "cache", "max_bytes": size, **options})


STREAMING = StreamingOrderConfig(block_photos=10, window_blocks=2)


@pytest.mark.parametrize("order", [PlainOrderConfig(), IdentityBalancedConfig()])
def test_random_orders_need_a_cache_for_the_whole_split(order: OrderConfig) -> None:
    split = replace(make_split([1, 3] * 25), root=RemotePath("s3://bucket/data"))
    with pytest.raises(UserError) as raised:
        check_stores([(split, SPLIT_BYTES)], order)
    assert str(raised.value) == (
        f"data.cache: null, while order {order.kind} over s3://bucket/data needs one request a photo (100 an epoch); "
        "expected a cache of 100,000,000,000 bytes, which holds the whole split; set data.cache.path=DIR "
        "data.cache.max_bytes=100000000000, or data.order.kind=streaming, which needs room for two of its windows only"
    )
    small = replace(split, cache=cache(SPLIT_BYTES - 1))
    with pytest.raises(
        UserError, match=r"data\.cache\.max_bytes: 99,999,999,999, while .* expected 100,000,000,000 or"
    ):
        check_stores([(small, SPLIT_BYTES)], order)
    check_stores([(replace(split, cache=cache(SPLIT_BYTES)), SPLIT_BYTES)], order)


def test_the_streaming_order_needs_two_windows() -> None:
    split = replace(make_split([1, 3] * 25), root=RemotePath("s3://bucket/data"))
    needed = 2 * 2 * (SPLIT_BYTES // 10 + (8 << 20))
    with pytest.raises(UserError, match=f"expected a cache of {needed:,} bytes, which holds two windows"):
        check_stores([(split, SPLIT_BYTES)], STREAMING)
    check_stores([(replace(split, cache=cache(needed)), SPLIT_BYTES)], STREAMING)
    with pytest.raises(UserError, match="which holds two windows"):
        check_stores([(replace(split, cache=cache(needed - 1)), SPLIT_BYTES)], STREAMING)


def test_local_data_needs_no_cache() -> None:
    check_stores([(replace(make_split([1, 2]), root=Path("data")), SPLIT_BYTES)], PlainOrderConfig())
