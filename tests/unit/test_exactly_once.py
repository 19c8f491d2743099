"""Each epoch sees every sample exactly once, whatever the ranks, threads, batches and restarts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.augment import Flip
from pipeline.config.order import OrderConfig, PlainOrderConfig, StreamingOrderConfig
from pipeline.data.manifest import SplitIndex, open_dataset
from pipeline.data.orders import build_order
from pipeline.data.step_plan import plan_step
from tests.datasets import make_dataset
from tests.loading import make_loader
from tests.splits import make_split

ORDERS = st.one_of(
    st.just(PlainOrderConfig()),
    st.builds(StreamingOrderConfig, block_photos=st.integers(1, 70), window_blocks=st.integers(1, 6)),
    st.builds(PlainOrderConfig, min_photos=st.integers(1, 3), max_photos=st.integers(3, 9)),
)
LEGS = st.lists(
    st.tuples(st.integers(1, 9), st.integers(1, 12), st.integers(1, 8), st.integers(1, 12), st.integers(1, 4)),
    min_size=1,
    max_size=5,
)
"""Between two restarts: ranks, local batch, micro-batches of a global batch, steps, threads."""


@settings(deadline=None, max_examples=200)
@given(photos=st.lists(st.integers(3, 30), min_size=1, max_size=12), config=ORDERS, legs=LEGS, seed=st.integers(0, 99))
def test_plans_cover_each_epoch_once(
    photos: list[int], config: OrderConfig, legs: list[tuple[int, int, int, int, int]], seed: int
) -> None:
    split = make_split(photos, seed)
    length = build_order(config, split, seed).epoch_samples
    stream: list[int] = []
    while len(stream) < 2 * length:
        for ranks, local_batch, num_micro, steps, _ in legs:
            order = build_order(config, split, seed)  # a restart knows nothing but the position
            for _ in range(steps):
                position = len(stream)
                plans = [
                    plan_step(order, position, local_batch * num_micro, local_batch, rank, ranks)
                    for rank in range(ranks)
                ]
                assert len({len(plan.micro_batches) for plan in plans}) == 1
                real = [micro for plan in plans for micro in plan.micro_batches if not micro.is_filler]
                assert [micro.position for micro in real] == list(
                    range(position, position + local_batch * num_micro, local_batch)
                )
                stream += [row for micro in real for row in micro.rows.tolist()]
    for epoch in range(2):
        seen = np.bincount(stream[epoch * length : (epoch + 1) * length], minlength=len(split))
        assert seen.max() == 1
        assert seen.sum() == length


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> SplitIndex:
    root: Path = make_dataset(
        tmp_path_factory.mktemp("data"), num_samples=90, num_identities=7, crop_px=16, samples_per_shard=25
    )
    return open_dataset(root).split("train")


@settings(deadline=None, max_examples=25)
@given(
    config=st.one_of(st.just(PlainOrderConfig()), st.just(StreamingOrderConfig(block_photos=7, window_blocks=3))),
    legs=LEGS,
)
def test_loaders_deliver_each_epoch_once(
    split: SplitIndex, config: OrderConfig, legs: list[tuple[int, int, int, int, int]]
) -> None:
    delivered: list[int] = []
    while len(delivered) < 2 * len(split):
        for ranks, local_batch, num_micro, steps, threads in legs:
            # a global batch larger than the split is refused
            start, global_batch = len(delivered), local_batch * min(num_micro, len(split) // local_batch)
            steps = min(steps, 3)
            found: dict[int, list[int]] = {}
            for rank in range(ranks):
                with make_loader(
                    split,
                    global_batch=global_batch,
                    local_batch=local_batch,
                    rank=rank,
                    world_size=ranks,
                    start=start,
                    stop=start + steps * global_batch,
                    augment=(Flip(),),
                    crop_px=16,
                    order=build_order(config, split, 0),
                    num_threads=threads,
                ) as loader:
                    for batch in loader:
                        for micro in batch.micro_batches:
                            if not micro.is_filler:
                                assert micro.valid.all()
                                found[micro.position] = micro.sample_ids.tolist()
            delivered += [sample for position in sorted(found) for sample in found[position]]
            assert len(delivered) == start + steps * global_batch
    for epoch in range(2):
        assert sorted(delivered[epoch * len(split) : (epoch + 1) * len(split)]) == sorted(split.sample_id.tolist())
