"""The order of samples: a bijection each epoch, and every global batch the same for any number of ranks."""

from __future__ import annotations

from collections import Counter
from time import perf_counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.errors import UserError
from pipeline.data.order import PlainOrder
from pipeline.data.step_plan import check_batches, plan_step


@settings(deadline=None)
@given(num_rows=st.integers(1, 5000), seed=st.integers(0, 2**40), epoch=st.integers(0, 10**6))
def test_each_epoch_visits_every_row_once(num_rows: int, seed: int, epoch: int) -> None:
    rows = PlainOrder.create("digest", num_rows, seed).rows(epoch * num_rows, num_rows)
    assert rows.dtype == np.int64
    assert np.array_equal(np.sort(rows), np.arange(num_rows))


@settings(deadline=None)
@given(num_rows=st.integers(1, 300), start=st.integers(0, 2000), cuts=st.lists(st.integers(0, 200), max_size=5))
def test_stream_is_the_same_however_it_is_cut(num_rows: int, start: int, cuts: list[int]) -> None:
    order = PlainOrder.create("digest", num_rows, 3)
    whole = order.rows(start, sum(cuts))
    parts, position = [np.empty(0, np.int64)], start
    for size in cuts:
        parts.append(order.rows(position, size))
        position += size
    assert np.array_equal(whole, np.concatenate(parts))


def test_order_depends_on_digest_seed_and_epoch_only() -> None:
    order = PlainOrder.create("digest", 1000, 7)
    first = order.rows(0, 1000)
    assert np.array_equal(first, PlainOrder.create("digest", 1000, 7).rows(0, 1000))
    others = [
        order.rows(1000, 1000),
        PlainOrder.create("digest", 1000, 8).rows(0, 1000),
        PlainOrder.create("other", 1000, 7).rows(0, 1000),
    ]
    for other in others:
        # Two independent permutations agree on one place on average.
        assert np.count_nonzero(first == other) < 10


def test_order_is_fixed_for_good() -> None:
    """A checkpoint of an older version must find the same order: these numbers never change."""
    assert PlainOrder.create("digest", 1000, 0).rows(995, 10).tolist() == [
        152,
        744,
        666,
        882,
        61,
        753,
        333,
        654,
        791,
        790,
    ]


def test_all_permutations_are_equally_likely() -> None:
    order = PlainOrder.create("digest", 4, 0)
    num_epochs = 4800
    counts = Counter(map(tuple, order.rows(0, 4 * num_epochs).reshape(-1, 4).tolist()))
    assert len(counts) == 24
    expected = num_epochs / 24
    chi_square = sum((count - expected) ** 2 / expected for count in counts.values())
    assert chi_square < 49.7  # 23 degrees of freedom, p = 0.001; the draw is fixed


def test_neighbours_in_the_stream_are_far_apart_on_disk() -> None:
    num_rows = 260_000_000
    rows = PlainOrder.create("digest", num_rows, 0).rows(123_456, 20_000)
    assert abs(rows.mean() / num_rows - 0.5) < 0.01
    histogram = np.histogram(rows, 20, (0, num_rows))[0]
    assert ((histogram - 1000) ** 2 / 1000).sum() < 43.8  # 19 degrees of freedom, p = 0.001
    # Independent uniform rows lie a third of the whole apart on average, and successive steps do not correlate.
    steps = np.diff(rows / num_rows)
    assert abs(np.abs(steps).mean() - 1 / 3) < 0.01
    assert abs(np.corrcoef(rows[:-1], rows[1:])[0, 1]) < 0.03


def test_a_batch_of_a_large_data_set_takes_a_millisecond() -> None:
    order = PlainOrder.create("digest", 260_000_000, 0)
    times_s = []
    for step in range(50):
        began = perf_counter()
        order.rows(step * 1024, 1024)
        times_s.append(perf_counter() - began)
    assert min(times_s) < 1e-3


@settings(max_examples=150, deadline=None)
@given(data=st.data(), num_rows=st.integers(1, 400))
def test_restarts_with_other_ranks_and_batches_lose_and_repeat_nothing(data: st.DataObject, num_rows: int) -> None:
    order = PlainOrder.create("digest", num_rows, 1)
    position, seen = 0, []
    for _ in range(data.draw(st.integers(1, 5), "runs")):
        local_batch = data.draw(st.integers(1, min(num_rows, 32)), "local_batch")
        global_batch = local_batch * data.draw(st.integers(1, max(1, min(num_rows // local_batch, 12))), "accumulation")
        world_size = data.draw(st.integers(1, 9), "world_size")
        check_batches(num_rows, global_batch, local_batch)
        for _ in range(data.draw(st.integers(0, 8), "steps")):
            plans = [plan_step(order, position, global_batch, local_batch, r, world_size) for r in range(world_size)]
            assert len({len(plan.micro_batches) for plan in plans}) == 1
            real = [micro for plan in plans for micro in plan.micro_batches if not micro.is_filler]
            assert len(real) == plans[0].num_micro_batches_global
            assert [micro.position for micro in real] == list(range(position, position + global_batch, local_batch))
            seen += [micro.rows for micro in real]
            position += global_batch
    stream = np.concatenate(seen) if seen else np.empty(0, np.int64)
    for epoch in range(0, len(stream), num_rows):
        rows = stream[epoch : epoch + num_rows]
        assert len(np.unique(rows)) == len(rows)


@settings(deadline=None)
@given(num_micro=st.integers(1, 20), local_batch=st.integers(1, 8), start=st.integers(0, 1000))
def test_micro_batches_do_not_depend_on_the_number_of_ranks(num_micro: int, local_batch: int, start: int) -> None:
    order = PlainOrder.create("digest", 177, 0)
    global_batch = num_micro * local_batch

    def global_micro_batches(world_size: int) -> list[tuple[int, list[int]]]:
        plans = [plan_step(order, start, global_batch, local_batch, rank, world_size) for rank in range(world_size)]
        for plan in plans:
            fillers = [micro.is_filler for micro in plan.micro_batches]
            assert fillers == sorted(fillers), "fillers stand last"
        micros = [micro for plan in plans for micro in plan.micro_batches if not micro.is_filler]
        return [(micro.position, micro.rows.tolist()) for micro in micros]

    alone = global_micro_batches(1)
    for world_size in (2, 3, 4, 7, 24):
        assert global_micro_batches(world_size) == alone


def test_ranks_share_micro_batches_evenly() -> None:
    order = PlainOrder.create("digest", 100, 0)
    plans = [plan_step(order, 0, 70, 10, rank, 3) for rank in range(3)]
    assert [sum(not micro.is_filler for micro in plan.micro_batches) for plan in plans] == [2, 2, 3]
    assert [len(plan.micro_batches) for plan in plans] == [3, 3, 3]
    # The filler copies the batch before it.
    assert plans[0].micro_batches[2].position == plans[0].micro_batches[1].position


@pytest.mark.parametrize(
    ("num_rows", "global_batch", "local_batch", "message"),
    [
        (100, 10, 3, "global_batch: 10 is no multiple of local_batch 3.*set global_batch to 12"),
        (63, 64, 8, r"global_batch: fewer samples than one global batch \(63 < 64\).*smaller global_batch"),
        (100, 10, 0, "local_batch, global_batch: 0 and 10"),
    ],
)
def test_unfit_batches_are_refused(num_rows: int, global_batch: int, local_batch: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_batches(num_rows, global_batch, local_batch)
