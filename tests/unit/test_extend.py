"""A new version of a data set: labels, splits, keys and withdrawals of the old one stay."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from pipeline.data.manifest import open_dataset
from pipeline.data.tombstones import read_tombstones
from preprocess.cli import app
from preprocess.extend import extend_plan
from preprocess.plan import ShardOptions, build_plan, load_plan
from preprocess.sources import LISTING_SCHEMA, read_source
from preprocess.verify import find_faults
from preprocess.withdraw import withdraw
from tests.datasets import encode_jpeg, make_dataset, random_image

CROP_PX = 24


def run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def shard(source: Path, out: Path, *more: str | Path) -> str:
    return run("shard", source, out, "--already-aligned", "--size", str(CROP_PX), "--workers", "1", *more)


def add_photo(photos: Path, name: str, seed: int) -> Path:
    path = photos / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_jpeg(random_image(np.random.default_rng(seed), CROP_PX)))
    return path


def rows_by_source(data: Path) -> dict[str, dict[str, object]]:
    dataset = open_dataset(data)
    tables = [dataset.split(name).manifest() for name in dataset.info.splits]
    return {row["source"]: row for row in pa.concat_tables(tables).to_pylist()}


@pytest.fixture
def old(tmp_path: Path) -> Path:
    names = ["ben", "cem", "eva", "fay"]
    return make_dataset(tmp_path, num_samples=40, num_identities=4, crop_px=CROP_PX, samples_per_shard=16, names=names)


def test_a_new_version_keeps_what_the_old_one_fixed(old: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    shutil.copy(photos / "eva" / "00002.jpg", tmp_path / "copy.jpg")
    (photos / "fay" / "00003.jpg").rename(tmp_path / "fay.jpg")
    withdraw(old, {"key": [str(rows_by_source(old)["eva/00002.jpg"]["key"])]}, "asked")
    for number, name in enumerate(("abe/1.jpg", "dan/1.jpg", "zoe/1.jpg", "ben/0.jpg", "ben/zz.jpg")):
        add_photo(photos, name, 100 + number)
    (tmp_path / "copy.jpg").rename(photos / "abe" / "again.jpg")  # of a withdrawn photo, under another name
    new = tmp_path / "new"
    text = shard(photos, new, "--extends", old)
    assert "40 photos known, 6 new, 1 gone; 3 people get new labels" in text
    before, after = rows_by_source(old), rows_by_source(new)
    for source, row in before.items():
        if source != "fay/00003.jpg":
            assert {name: after[source][name] for name in ("sample_id", "key", "label", "split")} == {
                name: row[name] for name in ("sample_id", "key", "label", "split")
            }
    ids = [row["sample_id"] for row in after.values()]
    assert len(set(ids)) == len(ids) == 45
    assert min(int(str(after[source]["sample_id"])) for source in after.keys() - before.keys()) == 41
    people = open_dataset(old).split("train").identities()
    assert open_dataset(new).split("train").identities() == [*people, "abe", "dan", "zoe"]
    gone = {before["eva/00002.jpg"]["sample_id"], after["abe/again.jpg"]["sample_id"]}
    assert set(read_tombstones(new)["sample_id"].to_pylist()) == gone
    assert len(open_dataset(new).split("train").withdrawn) == 2
    assert find_faults(new, lambda count: None) == []
    # withdrawn in the new version only, then the same command again
    withdraw(new, {"key": ["000000041"]}, "")
    assert "is finished already" in shard(photos, new, "--extends", old)
    (new / "dataset.json").unlink()
    shard(photos, new, "--extends", old)
    assert set(read_tombstones(new)["sample_id"].to_pylist()) == {*gone, 41}


def test_a_chain_of_versions(old: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    add_photo(photos, "abe/1.jpg", 1)
    shard(photos, tmp_path / "second", "--extends", old)
    add_photo(photos, "aaa/1.jpg", 2)
    # the last number given was that of a photo that was withdrawn and is gone: it must not come to mean another
    second = rows_by_source(tmp_path / "second")
    withdraw(tmp_path / "second", {"key": [str(second["abe/1.jpg"]["key"])]}, "")
    (photos / "abe" / "1.jpg").unlink()
    add_photo(photos, "abe/2.jpg", 3)
    shard(photos, tmp_path / "third", "--extends", tmp_path / "second")
    third = rows_by_source(tmp_path / "third")
    assert open_dataset(tmp_path / "third").split("train").identities()[-2:] == ["abe", "aaa"]
    assert third["abe/2.jpg"]["sample_id"] == 43
    assert third["aaa/1.jpg"]["sample_id"] == 42
    assert len(open_dataset(tmp_path / "third").split("train").withdrawn) == 0


def test_people_without_a_usable_photo_get_their_label_last(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for number, name in enumerate(("ann/1.jpg", "cat/1.jpg")):
        add_photo(photos, name, number)
    (photos / "bob").mkdir()
    (photos / "bob" / "1.jpg").write_text("no photo")
    shard(photos, tmp_path / "old")
    add_photo(photos, "bob/2.jpg", 9)
    _, rows, _ = read_source(photos)
    options = load_plan(tmp_path / "old").options
    plan = extend_plan(rows, options, tmp_path / "old", lambda text: None)
    labels = dict(zip(plan.rows["identity"].to_pylist(), plan.rows["label"].to_pylist(), strict=True))
    assert labels == {"ann": 0, "cat": 2, "bob": 3}


def test_splits_stay_and_new_people_are_dealt(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for number in range(8):
        add_photo(photos, f"old{number}/1.jpg", number)
    shard(photos, tmp_path / "old", "--val-identities", "0.25")
    before = load_plan(tmp_path / "old")
    assert set(before.rows["split"].to_pylist()) == {"train", "val"}
    for number in range(12):
        add_photo(photos, f"new{number}/1.jpg", 50 + number)
    _, rows, _ = read_source(photos)
    plan = extend_plan(rows, before.options, tmp_path / "old", lambda text: None)
    split_of = dict(zip(plan.rows["identity"].to_pylist(), plan.rows["split"].to_pylist(), strict=True))
    for name, split in zip(before.rows["identity"].to_pylist(), before.rows["split"].to_pylist(), strict=True):
        assert split_of[name] == split
    assert [split_of[f"new{number}"] for number in range(12)].count("val") == 3
    assert plan.hash == extend_plan(rows, before.options, tmp_path / "old", lambda text: None).hash
    said: list[str] = []
    extend_plan(
        rows.filter(pa.compute.not_equal(rows["identity"], "old0")), before.options, tmp_path / "old", said.append
    )
    assert "1 people have no photo any more, such as old0" in said[1]


def test_without_extends_plans_are_as_they_ever_were() -> None:
    rows = [{"source": f"p{i % 7}/{i}.jpg", "identity": f"p{i % 7}", "problem": ""} for i in range(200)]
    table = pa.Table.from_pylist(rows, schema=LISTING_SCHEMA)
    plan = build_plan(table, ShardOptions(val_identities=0.3, samples_per_shard=40, seed=5))
    assert plan.hash == "6849208e4b22e3776e95b35afbf6d646f7c271af6895a134ce3ec546dd69ae18"
