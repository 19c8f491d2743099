"""`preprocess status`: what it counts at each point of a run, while others write, and afterwards."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.config.errors import UserError
from preprocess.crops import CropMaker, CropOptions
from preprocess.dataset import finish_dataset
from preprocess.plan import Plan, ShardOptions, build_plan, save_plan
from preprocess.shard import (
    ShardContext,
    finish_shard,
    num_slices,
    process_shard,
    process_slice,
    slice_path,
    slice_rows,
)
from preprocess.sources import read_source
from preprocess.sources.store import PhotoStore
from preprocess.status import StatusReader, render
from preprocess.timing import STAGES, SliceTimes, StageClock, read_recent, times_folder
from tests.datasets import make_dataset

NUM_PHOTOS = 101  # one of them a text


class Work:
    """A data set that is planned and not begun: shards of 40, 40 and 21 photos, in slices of 32."""

    def __init__(self, root: Path) -> None:
        make_dataset(root, num_samples=NUM_PHOTOS - 1, num_identities=5, crop_px=32)
        self.out = root / "out"
        self.out.mkdir()
        options = ShardOptions(crop=CropOptions(detector="none", size_px=32), samples_per_shard=40)
        self.photos: PhotoStore
        self.photos, listing, _ = read_source(root / "photos")
        self.plan: Plan = build_plan(listing, options)
        save_plan(self.plan, self.out)
        self.maker = CropMaker(options.crop, None)
        self.context = ShardContext(self.photos, self.out, options, self.plan.hash)

    def make_slice(self, number: int, index: int) -> None:
        shard = self.plan.shard(number)
        process_slice(self.context, shard.name, index, slice_rows(shard, index), self.maker)

    def make_shard(self, number: int) -> None:
        process_shard(self.plan, number, self.photos, self.out, self.maker)


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(tmp_path)


def test_counts_at_each_point(work: Work) -> None:
    reader = StatusReader(work.out)
    status = reader.look()
    assert (status.num_shards, status.num_photos, status.shards_done, status.photos_done) == (3, NUM_PHOTOS, 0, 0)
    assert status.num_slices == sum(num_slices(work.plan.shard(number)) for number in range(3))
    assert status.photos_per_s is None
    work.make_slice(0, 0)
    status = reader.look()
    assert (status.shards_done, status.slices_done, status.photos_done) == (0, 1, 32)
    assert status.photos_per_s is not None
    assert status.photos_per_s > 0
    assert status.left_s == pytest.approx((NUM_PHOTOS - 32) / status.photos_per_s)
    for number in range(3):
        work.make_shard(number)
    status = reader.look()
    assert (status.shards_done, status.photos_done, status.is_finished) == (3, NUM_PHOTOS, False)
    assert status.rejects == {"not_an_image": 1}
    finish_dataset(work.plan, work.out)
    status = reader.look()
    assert status.is_finished
    assert status.rejects == {"not_an_image": 1}
    assert status.slices_done == status.num_slices
    assert status.stages_s == {}


def test_rejects_count_once_in_slices_and_in_shards(work: Work) -> None:
    for number in range(3):
        for index in range(num_slices(work.plan.shard(number))):
            work.make_slice(number, index)
    reader = StatusReader(work.out)
    assert reader.look().rejects == {"not_an_image": 1}
    for number in range(3):
        finish_shard(work.context, work.plan.shard(number))
        status = reader.look()
        assert (status.shards_done, status.photos_done) == (number + 1, NUM_PHOTOS)
        assert status.rejects == {"not_an_image": 1}


def test_a_shard_that_is_lost_counts_no_more(work: Work) -> None:
    work.make_shard(0)
    reader = StatusReader(work.out)
    assert reader.look().shards_done == 1
    shutil.rmtree(work.out / "commits")
    assert reader.look().shards_done == 0


def test_looking_while_others_write(work: Work) -> None:
    """Never backwards, never an error, though slices vanish into shards meanwhile."""
    reader = StatusReader(work.out)
    seen = [reader.look().photos_done]

    def make() -> None:
        for number in range(3):
            work.make_shard(number)

    writer = threading.Thread(target=make)
    writer.start()
    while writer.is_alive():
        seen.append(reader.look().photos_done)
    writer.join()
    seen.append(reader.look().photos_done)
    assert seen == sorted(seen)
    assert seen[-1] == NUM_PHOTOS


def test_half_a_line_and_a_broken_slice_are_left_out(work: Work) -> None:
    work.make_slice(0, 0)
    work.make_slice(0, 1)
    (file,) = times_folder(work.out).iterdir()
    assert len(read_recent(work.out)) == 2
    with open(file, "a") as handle:
        handle.write('{"end_s": 12')
    assert len(read_recent(work.out)) == 2
    path = slice_path(work.out, work.plan.shard(0).name, 1)
    path.write_bytes(path.read_bytes()[:100])
    assert StatusReader(work.out).look().slices_done == 1


def test_stages_add_up_to_the_work(work: Work) -> None:
    work.make_slice(0, 0)
    (line,) = read_recent(work.out)
    assert isinstance(line, SliceTimes)
    assert line.num_photos == 32
    assert set(line.stages_s) == set(STAGES)
    assert line.stages_s["detect"] == 0  # there is no detector
    assert all(line.stages_s[stage] > 0 for stage in ("read", "decode", "encode", "write"))
    assert sum(line.stages_s.values()) <= line.wall_s


def test_a_stage_within_another_is_not_counted_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([0.0, 1.0, 4.0, 10.0])  # decode begins, read begins, read ends, decode ends
    monkeypatch.setattr("preprocess.timing.time.perf_counter", lambda: next(moments))
    clock = StageClock()
    with clock.measure("decode"), clock.measure("read"):
        pass
    taken = clock.take()
    assert (taken["read"], taken["decode"]) == (3.0, 7.0)
    assert set(clock.take().values()) == {0.0}


def test_the_table_names_the_slowest_stage(work: Work) -> None:
    status = StatusReader(work.out).look()
    status.stages_s, status.photos_per_s, status.silent_s = {"read": 1.0, "detect": 3.0}, 10.0, 90.0
    console = Console(record=True, width=100)
    console.print(render(status, work.out))
    text = console.export_text()
    assert "75.0% (slowest)" in text
    assert "0:01:30 ago" in text
    assert "0:00:10" in text  # 101 photos at 10 a second


def test_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        StatusReader(tmp_path)
