"""Orders beside the plain and the balanced one: what an epoch holds, and how draws are spread."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.errors import UserError
from pipeline.config.order import PlainOrderConfig, StreamingOrderConfig, WeightedOrderConfig
from pipeline.data.order import PlainOrder
from pipeline.data.orders import build_order
from pipeline.data.selected_order import SelectedOrder
from pipeline.data.step_plan import EpochOrder
from pipeline.data.streaming_order import StreamingOrder
from pipeline.data.weighted_order import WeightedOrder, read_factors
from tests.splits import make_split

PHOTOS = st.lists(st.integers(1, 40), min_size=1, max_size=20)


@settings(deadline=None)
@given(photos=PHOTOS, min_photos=st.integers(1, 10), max_photos=st.one_of(st.none(), st.integers(10, 20)))
def test_selected_people_and_photos_take_turns(photos: list[int], min_photos: int, max_photos: int | None) -> None:
    split, counts = make_split(photos), np.array(photos)
    if counts.max() < min_photos:
        with pytest.raises(UserError, match=r"min_photos"):
            SelectedOrder(split, 0, min_photos, max_photos)
        return
    order = SelectedOrder(split, 0, min_photos, max_photos)
    taken = np.where(counts >= min_photos, counts if max_photos is None else np.minimum(counts, max_photos), 0)
    assert order.epoch_samples == taken.sum()
    times = np.zeros(len(split), int)
    num_epochs = 5
    for epoch in range(num_epochs):
        seen = np.bincount(order.rows(epoch * order.num_rows, order.num_rows), minlength=len(split))
        assert seen.max() == 1
        assert np.array_equal(np.bincount(split.label, weights=seen, minlength=len(photos)), taken)
        times += seen
    for label in np.flatnonzero(taken):
        # photos of one person have been seen equally often, give or take one
        own = times[split.label == label]
        assert own.max() - own.min() <= 1
        assert own.sum() == num_epochs * taken[label]


@settings(deadline=None)
@given(
    photos=PHOTOS,
    samples_per_shard=st.integers(1, 50),
    block=st.integers(1, 60),
    window=st.integers(1, 9),
    cuts=st.lists(st.integers(0, 90), max_size=6),
)
def test_streaming_visits_every_row_once_from_a_few_blocks_at_a_time(
    photos: list[int], samples_per_shard: int, block: int, window: int, cuts: list[int]
) -> None:
    split = make_split(photos, samples_per_shard=samples_per_shard)
    order = StreamingOrder(split, 4, block, window)
    first_of_shard = np.searchsorted(split.shard, split.shard)
    block_of_row = split.shard * 1000 + (np.arange(len(split)) - first_of_shard) // block
    for epoch in range(2):
        rows = order.rows(epoch * len(split), len(split))
        assert np.array_equal(np.sort(rows), np.arange(len(split)))
        # blocks in the order in which they are first needed: once `window` others have begun, a block is over
        begun: list[int] = []
        for number in block_of_row[rows].tolist():
            if number not in begun:
                begun.append(number)
            assert begun.index(number) // window == (len(begun) - 1) // window
    position, parts = 0, [np.empty(0, np.int64)]
    for size in cuts:
        parts.append(order.rows(position, size))
        position += size
    assert np.array_equal(np.concatenate(parts), StreamingOrder(split, 4, block, window).rows(0, position))


def test_streaming_shuffles_differently_each_epoch() -> None:
    split = make_split([10] * 100)
    order = StreamingOrder(split, 0, 50, 4)
    first, second = order.rows(0, 1000), order.rows(1000, 1000)
    assert np.count_nonzero(first == second) < 20
    assert np.count_nonzero(first == StreamingOrder(split, 1, 50, 4).rows(0, 1000)) < 20


def test_weights_decide_how_often_people_come(tmp_path: Path) -> None:
    photos = [1, 4, 16, 64]
    split = make_split(photos)
    for power, weights in ((0.0, [1, 1, 1, 1]), (0.5, [1, 2, 4, 8]), (1.0, photos)):
        rows = WeightedOrder(split, 0, power, None).rows(0, 20_000)
        expected = 20_000 * np.array(weights) / sum(weights)
        found = np.bincount(split.label[rows], minlength=4)
        assert ((found - expected) ** 2 / expected).sum() < 16.3  # 3 degrees of freedom, p = 0.001; the draw is fixed
        of_photos = np.bincount(rows, minlength=len(split))[split.label == 3]
        assert of_photos.min() > 0
    order = WeightedOrder(split, 0, 0.0, np.array([0.0, 3.0, 1.0, 0.0]))
    found = np.bincount(split.label[order.rows(100, 4000)], minlength=4)
    assert found[0] == found[3] == 0
    assert abs(found[1] / found[2] - 3) < 0.3
    assert np.array_equal(order.rows(100, 50)[20:], order.rows(120, 30))
    with pytest.raises(UserError, match="all are 0"):
        WeightedOrder(split, 0, 1.0, np.zeros(4))


def test_lists_of_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = make_split([2, 2, 2])
    monkeypatch.setattr(type(split), "identities", lambda self: ["ann", "bob", "cat"])
    path = tmp_path / "weights.csv"
    path.write_text("identity,weight\nbob,0\ncat,2.5\nnobody,7\n")
    assert read_factors(path, split).tolist() == [1.0, 0.0, 2.5]
    for text, message in (
        ("identity,weight\nbob,-1\n", "no number from 0 on"),
        ("identity,weight\nbob,nan\n", "no number from 0 on"),
        ("identity,heft\nbob,1\n", "columns identity, weight"),
        ("identity,weight\nnobody,1\n", "nobody of it is in the split"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            read_factors(path, split)
    with pytest.raises(UserError, match="columns identity, weight"):
        read_factors(tmp_path / "missing.parquet", split)


def test_the_configuration_chooses() -> None:
    split = make_split([5, 5, 5])
    built: list[EpochOrder] = [
        build_order(config, split, 0)
        for config in (
            PlainOrderConfig(),
            PlainOrderConfig(max_photos=2),
            WeightedOrderConfig(),
            StreamingOrderConfig(block_photos=2, window_blocks=2),
        )
    ]
    assert [type(order) for order in built] == [PlainOrder, SelectedOrder, WeightedOrder, StreamingOrder]
    assert [order.epoch_samples for order in built] == [15, 6, 15, 15]
    for order in built:
        assert order.epoch(30) == pytest.approx(30 / order.epoch_samples)
        assert order.position_at(2.0) == 2 * order.epoch_samples
        assert not order.top_ups(0, 10).any()
        with pytest.raises(ValueError, match="positions count from 0"):
            order.rows(-1, 2)
