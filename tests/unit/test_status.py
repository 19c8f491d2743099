"""How far a data set is, from its files alone."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.config.errors import UserError
from preprocess.crops import CropMaker, CropOptions
from preprocess.dataset import finish_dataset
from preprocess.plan import Plan, ShardOptions, build_plan, save_plan
from preprocess.shard import ShardContext, finish_shard, num_slices, process_slice, slice_rows
from preprocess.sources import read_source
from preprocess.status import open_plan, read_status, show
from tests.datasets import encode_jpeg, random_image


def begin(tmp_path: Path) -> tuple[Plan, ShardContext, CropMaker]:
    import numpy as np

    rng = np.random.default_rng(0)
    for number in range(100):
        path = tmp_path / "photos" / f"person {number % 4}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"none" if number % 25 == 0 else encode_jpeg(random_image(rng, 32)))
    options = ShardOptions(crop=CropOptions(detector="none", size_px=32), samples_per_shard=50)
    store, listing, _ = read_source(tmp_path / "photos")
    plan = build_plan(listing, options)
    out = tmp_path / "out"
    out.mkdir()
    save_plan(plan, out)
    return plan, ShardContext(store, out, options, plan.hash), CropMaker(options.crop, None)


def text(out: Path) -> str:
    console = Console(file=io.StringIO(), width=100)
    console.print(show(out, read_status(out, open_plan(out))))
    assert isinstance(console.file, io.StringIO)
    return " ".join(console.file.getvalue().split())


def test_from_the_first_slice_to_the_last_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, context, maker = begin(tmp_path)
    out = context.out
    assert "0 of 100 photos (0.0%), 0 of 2 shards" in text(out)
    assert "nothing has moved for a minute" in text(out)
    first = plan.shard(0)
    process_slice(context, first.name, 0, slice_rows(first, 0), maker)
    found = read_status(out, plan)
    assert (found.num_photos_done, found.num_shards_done, found.num_processes) == (32, 0, 1)
    assert found.photos_per_s > 0
    assert found.eta_s == pytest.approx(68 / found.photos_per_s)
    assert set(found.stage_s) == {"read and decode", "detect", "align", "encode and measure"}
    assert found.stage_s["detect"] == 0
    assert "under way" in text(out)
    assert "most time goes to:" in text(out)
    for number in range(2):
        shard = plan.shard(number)
        for index in range(num_slices(shard)):
            process_slice(context, shard.name, index, slice_rows(shard, index), maker)
        finish_shard(context, shard)
    found = read_status(out, plan)
    assert (found.num_photos_done, found.num_shards_done) == (100, 2)
    assert sum(found.rejects.values()) == 4
    assert not found.is_finished
    monkeypatch.setattr("preprocess.status._IDLE_S", 0.0)
    assert "at rest, unfinished" in text(out)
    finish_dataset(plan, out)
    assert "finished" in text(out)
    assert "100 of 100 photos (100.0%), 2 of 2 shards" in text(out)
    assert "4.0%" in text(out)
    assert not (out / ".work").exists()


def test_rejects_of_waiting_slices_count_and_spoilt_files_do_not_matter(tmp_path: Path) -> None:
    plan, context, maker = begin(tmp_path)
    for number in range(2):
        shard = plan.shard(number)
        for index in range(num_slices(shard)):
            process_slice(context, shard.name, index, slice_rows(shard, index), maker)
    times = next((context.out / ".work" / "times").glob("*.json"))
    (times.parent / "other.json").write_text("{")
    found = read_status(context.out, plan)
    assert sum(found.rejects.values()) == 4
    assert found.num_processes == 1


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no data set is made here"):
        open_plan(tmp_path)
