"""Plain order and mined lists in one stream: nothing lost or repeated, whole groups, whatever the ranks."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.config.errors import UserError
from pipeline.config.load import validate_config
from pipeline.config.mining import MiningConfig
from pipeline.data.mined_list import MinedList, make_list, prune_lists, read_list, write_list
from pipeline.data.mined_order import MinedOrder, MiningLayout
from pipeline.data.mining_subset import draw_subset
from pipeline.data.order import PlainOrder
from pipeline.data.step_plan import Order, plan_step

# rows of lists start here, so that a test can tell them from rows of the plain order
MINED = 10_000


def some_list(number: int, num_groups: int, group_size: int) -> MinedList:
    rows = MINED * (1 + number) + np.arange(num_groups * group_size).reshape(num_groups, group_size)
    distances = np.zeros(num_groups, np.float32)
    return make_list(number, rows, distances, distances, {"mined_round": float(number)})


class Stream:
    """A run's orders: segment after segment, each with a list of its own."""

    def __init__(self, layout: MiningLayout, num_rows: int, group_size: int, list_sizes: list[int], seed: int = 3):
        self.layout, self.seed = layout, seed
        self.plain = PlainOrder.create("digest", num_rows, seed)
        self.group_size, self.list_sizes = group_size, list_sizes

    def order(self, position: int) -> Order:
        segment = self.layout.segment(position)
        if segment.number == 0:
            return self.plain
        size = self.list_sizes[segment.number % len(self.list_sizes)]
        mined = some_list(segment.number, size, self.group_size)
        return MinedOrder.create(self.plain, self.layout, segment, mined, self.seed)

    def batch(self, position: int) -> np.ndarray:
        return self.order(position).rows(position, self.layout.global_batch)


@st.composite
def streams(draw: st.DrawFn) -> Stream:
    group_size = draw(st.integers(3, 5))
    num_mined = group_size * draw(st.integers(1, 4))
    global_batch = num_mined + draw(st.integers(1, 40))
    start, every = draw(st.integers(0, 4)), draw(st.integers(1, 6))
    layout = MiningLayout(start * global_batch, every * global_batch, global_batch, num_mined)
    sizes = draw(st.lists(st.integers(1, 30), min_size=1, max_size=4))
    return Stream(layout, draw(st.integers(1, 200)), group_size, sizes, draw(st.integers(0, 99)))


@settings(deadline=None)
@given(stream=streams(), num_batches=st.integers(1, 30))
def test_plain_part_is_the_plain_order_across_segments(stream: Stream, num_batches: int) -> None:
    layout = stream.layout
    plain: list[np.ndarray] = []
    for position in range(0, num_batches * layout.global_batch, layout.global_batch):
        assert layout.plain_position(position) == sum(map(len, plain))
        rows = stream.batch(position)
        plain.append(rows[rows < MINED])
        assert len(rows) - len(plain[-1]) == (layout.num_mined if position >= layout.start else 0)
    visited = np.concatenate(plain)
    assert np.array_equal(visited, stream.plain.rows(0, len(visited)))
    for first in range(0, len(visited), stream.plain.num_rows):
        epoch = visited[first : first + stream.plain.num_rows]
        assert len(np.unique(epoch)) == len(epoch)


@settings(deadline=None)
@given(stream=streams(), segment=st.integers(0, 3))
def test_batches_hold_whole_groups_and_the_list_is_walked_again_and_again(stream: Stream, segment: int) -> None:
    layout, size = stream.layout, stream.group_size
    start = layout.start + segment * layout.every
    seen: list[int] = []
    for position in range(start, start + layout.every, layout.global_batch):
        rows = stream.batch(position)
        mined = rows[rows >= MINED]
        assert set(mined // MINED - 1) == {segment + 1}, "from this round's list"
        groups = (mined % MINED).reshape(-1, size)
        assert np.array_equal(groups, groups[:, :1] + np.arange(size))
        assert not (groups[:, 0] % size).any()
        seen += (groups[:, 0] // size).tolist()
    num_groups = stream.list_sizes[(segment + 1) % len(stream.list_sizes)]
    for first in range(0, len(seen), num_groups):
        walk = seen[first : first + num_groups]
        assert len(set(walk)) == len(walk), "each group once before any comes again"


@settings(deadline=None)
@given(data=st.data(), stream=streams(), segment=st.integers(0, 3))
def test_a_segment_is_the_same_however_it_is_cut(data: st.DataObject, stream: Stream, segment: int) -> None:
    start = stream.layout.start + segment * stream.layout.every
    order = stream.order(start)
    whole = order.rows(start, stream.layout.every)
    first = data.draw(st.integers(0, stream.layout.every), "first")
    count = data.draw(st.integers(0, stream.layout.every - first), "count")
    assert np.array_equal(order.rows(start + first, count), whole[first : first + count])
    with pytest.raises(ValueError, match="leave the segment"):
        order.rows(start + first, stream.layout.every - first + 1)


@settings(deadline=None)
@given(local_batch=st.integers(2, 8), accumulation=st.integers(2, 6), groups=st.integers(1, 3), batch=st.integers(0, 9))
def test_global_batches_do_not_depend_on_ranks(local_batch: int, accumulation: int, groups: int, batch: int) -> None:
    global_batch = local_batch * accumulation
    if 3 * groups >= global_batch:
        return
    stream = Stream(MiningLayout(0, 4 * global_batch, global_batch, 3 * groups), 50, 3, [7, 5])
    position = batch * global_batch
    order = stream.order(position)
    for world_size in (1, 2, 3, 4, 7):
        plans = [plan_step(order, position, global_batch, local_batch, rank, world_size) for rank in range(world_size)]
        micros = [micro.rows for plan in plans for micro in plan.micro_batches if not micro.is_filler]
        assert np.array_equal(np.concatenate(micros), stream.batch(position))
        shares = [int((rows >= MINED).sum()) for rows in micros]
        assert max(shares) - min(shares) <= 1, "each micro-batch has its share of mined photos"


def test_walk_depends_on_the_list_and_the_seed() -> None:
    layout = MiningLayout(0, 4000, 40, 20)
    segment, plain = layout.segment(0), PlainOrder.create("digest", 100, 0)
    one, other = some_list(1, 50, 4), make_list(1, some_list(1, 50, 4).rows, *np.ones((2, 50), np.float32), {})
    assert one.sha256 != other.sha256
    rows = [
        MinedOrder.create(plain, layout, segment, mined, seed).rows(0, 400)
        for mined, seed in [(one, 0), (one, 0), (one, 1), (other, 0)]
    ]
    assert np.array_equal(rows[0], rows[1])
    for different in rows[2:]:
        assert np.array_equal(rows[0] < MINED, different < MINED)
        assert np.array_equal(rows[0][rows[0] < MINED], different[different < MINED])
        assert np.count_nonzero(rows[0] != different) > 150


def test_length_of_a_run_is_passes_of_the_plain_order() -> None:
    layout = MiningLayout(start=100, every=50, global_batch=10, num_mined=5)
    assert layout.num_steps(60) == 6
    assert layout.num_steps(100) == 10
    assert layout.num_steps(200) == 30
    assert layout.plain_position(300) == 200
    assert layout.num_steps(0.1) == 1


@settings(deadline=None)
@given(
    photos=st.lists(st.integers(1, 12), min_size=1, max_size=30),
    size=st.integers(10, 80),
    per_person=st.integers(2, 5),
    number=st.integers(1, 5),
)
def test_subset_has_people_with_two_photos_or_more(photos: list[int], size: int, per_person: int, number: int) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(photos)), photos)).astype(np.int32)
    rows = draw_subset(labels, seed=7, number=number, size=size, photos_per_person=per_person)
    assert len(np.unique(rows)) == len(rows) <= size
    assert np.array_equal(rows, rows[np.lexsort((rows, labels[rows]))])
    counts = Counter(labels[rows].tolist())
    assert all(count == min(photos[label], per_person) >= 2 for label, count in counts.items())
    eligible = sum(count >= 2 for count in photos)
    assert len(counts) >= min(2, eligible)
    full = sum(min(count, per_person) for count in photos if count >= 2)
    assert len(rows) == full if full <= size else len(rows) > size - per_person


def test_rounds_draw_different_subsets() -> None:
    labels = np.repeat(np.arange(200), 10).astype(np.int32)
    one, other = (draw_subset(labels, seed=0, number=n, size=200, photos_per_person=4) for n in (1, 2))
    assert len(one) == len(other) == 200
    assert len(np.intersect1d(one, other)) < 50
    people = np.unique(labels[np.concatenate([one, other])])
    assert 70 < len(people) <= 100, "each round meets other people"


def test_a_list_comes_back_from_its_file(tmp_path: Path) -> None:
    mined = some_list(12, 5, 4)
    assert mined.content == some_list(12, 5, 4).content
    write_list(tmp_path, mined)
    assert [path.name for path in (tmp_path / "mined").iterdir()] == ["round-000012.arrow"]
    found = read_list(tmp_path / mined.file, mined.sha256)
    assert (found.number, found.metrics, found.content) == (12, mined.metrics, mined.content)
    assert found.rows.dtype == np.int64
    assert np.array_equal(found.rows, mined.rows)


def test_a_missing_or_changed_list_is_a_mistake_with_a_remedy(tmp_path: Path) -> None:
    mined = some_list(1, 5, 4)
    with pytest.raises(UserError, match=r"No such file.*restore it"):
        read_list(tmp_path / mined.file, mined.sha256)
    write_list(tmp_path, mined)
    content = bytearray(mined.content)
    content[len(content) // 2] ^= 1
    (tmp_path / mined.file).write_bytes(content)
    with pytest.raises(UserError, match=r"changed since the checkpoint.*restore it"):
        read_list(tmp_path / mined.file, mined.sha256)


def test_lists_that_nothing_refers_to_go(tmp_path: Path) -> None:
    prune_lists(tmp_path, set())
    for number in (1, 2, 3):
        write_list(tmp_path, some_list(number, 2, 3))
    (tmp_path / "mined" / ".round-000004.arrow.0123.tmp").touch()
    prune_lists(tmp_path, {"mined/round-000001.arrow", "mined/round-000003.arrow"})
    assert sorted(path.name for path in (tmp_path / "mined").iterdir()) == ["round-000001.arrow", "round-000003.arrow"]


def test_configuration_holds_whole_groups() -> None:
    assert MiningConfig(share=0.25, negatives=2).mined_slots(256) == 64
    assert MiningConfig(share=0.25, negatives=3).mined_slots(64) == 15
    with pytest.raises(ValidationError, match="less than two people"):
        MiningConfig(subset=10, photos_per_person=6)
    tree: dict[str, Any] = {
        "output": "run",
        "data": {"path": "data"},
        "training": {"epochs": 1, "global_batch": 8, "local_batch": 4},
        "mining": {"share": 0.4},
    }
    with pytest.raises(UserError, match="holds no group of 4 slots"):
        validate_config(tree)
    assert validate_config(tree | {"mining": {"share": 0.5}}).mining == MiningConfig(share=0.5)
