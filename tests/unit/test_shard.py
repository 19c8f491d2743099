"""One shard: the bytes on disk, the rows of the manifest, and what an interruption at any file leaves behind."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.config.errors import UserError
from pipeline.data.dataset_format import MANIFEST_SCHEMA, shard_paths
from pipeline.data.manifest import open_dataset
from preprocess import shard as shard_module
from preprocess.crops import CropMaker, CropOptions
from preprocess.dataset import finish_dataset
from preprocess.plan import Plan, ShardOptions, build_plan, save_plan
from preprocess.shard import build_idx, process_shard, read_commit
from preprocess.sources import read_source
from preprocess.sources.store import PhotoFiles
from preprocess.verify import find_faults

OPTIONS = ShardOptions(
    crop=CropOptions(detector="none", size_px=32), samples_per_shard=40, val_identities=0.3, licence="for tests"
)


def write_photos(root: Path, num_identities: int = 5, photos: int = 17) -> None:
    """Small square pictures in the folders of identities, and a bad file of most kinds."""
    rng = np.random.default_rng(3)
    for identity in range(num_identities):
        folder = root / f"person {identity}"
        folder.mkdir(parents=True)
        for number in range(photos):
            coarse = rng.integers(0, 255, (6, 6, 3), dtype=np.uint8)
            cv2.imwrite(str(folder / f"{number}.jpg"), cv2.resize(coarse, (32, 32), interpolation=cv2.INTER_CUBIC))
    bad = root / "person 0"
    (bad / "text.jpg").write_text("not a photo")
    (bad / "zero.jpg").touch()
    (bad / "cut.jpg").write_bytes((bad / "0.jpg").read_bytes()[:500])
    (bad / "loop").symlink_to(root)
    (bad / "gone.jpg").symlink_to(root / "gone.jpg")
    cv2.imwrite(str(bad / "wide.png"), np.zeros((20, 30, 3), np.uint8))


def make(source: Path, out: Path, options: ShardOptions = OPTIONS) -> Plan:
    """Shard in this process."""
    photos, listing, _ = read_source(source)
    plan = build_plan(listing, options)
    out.mkdir(exist_ok=True)
    save_plan(plan, out)
    maker = CropMaker(options.crop)
    for number in range(plan.num_shards):
        process_shard(plan, number, photos, out, maker)
    finish_dataset(plan, out)
    return plan


def tree(out: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Plan]:
    root = tmp_path_factory.mktemp("shard")
    write_photos(root / "photos")
    return root / "photos", root / "out", make(root / "photos", root / "out")


def manifest(out: Path) -> list[dict]:
    return [row for path in sorted((out / "manifest").iterdir()) for row in pq.read_table(path).to_pylist()]


def test_manifest_agrees_with_the_tar(made: tuple[Path, Path, Plan]) -> None:
    _, out, plan = made
    rows = manifest(out)
    assert len(rows) == 91
    assert {row["key"] for row in rows} == {f"{i:09d}" for i in range(91)}
    for row in rows:
        if row["status"] == "rejected":
            assert (row["row"], row["jpg_offset"], row["jpg_size"]) == (-1, -1, 0)
            continue
        tar = shard_paths(out, row["split"], row["shard"])["tar"].read_bytes()
        jpg = tar[row["jpg_offset"] : row["jpg_offset"] + row["jpg_size"]]
        assert zlib.crc32(jpg) == row["jpg_crc32"]
        assert Image.open(io.BytesIO(jpg)).size == (32, 32)
        assert plan.identities()[row["label"]] == row["identity"]
    assert pq.read_table(out / "manifest" / "train-000000.parquet").schema.equals(MANIFEST_SCHEMA)


def test_crops_hold_the_right_photo(made: tuple[Path, Path, Plan]) -> None:
    photos, out, _ = made
    for row in manifest(out)[:20]:
        if row["status"] == "kept":
            tar = shard_paths(out, row["split"], row["shard"])["tar"].read_bytes()
            crop = cv2.imdecode(np.frombuffer(tar, np.uint8)[row["jpg_offset"] :][: row["jpg_size"]], cv2.IMREAD_COLOR)
            photo = cv2.imread(str(photos / row["source"]))
            assert np.corrcoef(crop.ravel(), photo.ravel())[0, 1] > 0.97


def test_rejects_keep_their_reason(made: tuple[Path, Path, Plan]) -> None:
    _, out, _ = made
    reasons = {Path(row["source"]).name: row["reject_reason"] for row in manifest(out) if row["status"] == "rejected"}
    assert reasons == {
        "text.jpg": "not_an_image",
        "zero.jpg": "empty_file",
        "cut.jpg": "truncated",
        "loop": "symlink_loop",
        "gone.jpg": "unreadable",
        "wide.png": "not_square",
    }
    assert sum(open_dataset(out).info.reject_counts.values()) == 6
    pages = "".join(path.read_text() for path in (out / "rejects").iterdir())
    assert pages.count("<img") == 1  # only the wide one decoded
    for name in reasons:
        assert f"person 0/{name}" in pages


def test_tar_bears_no_trace_of_time_or_user(made: tuple[Path, Path, Plan]) -> None:
    _, out, _ = made
    with tarfile.open(out / "train" / "train-000000.tar") as archive:
        members = archive.getmembers()
    assert all((m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) == (0, 0, 0, "", "", 0o644) for m in members)
    names = [member.name for member in members]
    assert [name.split(".")[1] for name in names] == ["cls", "jpg"] * (len(names) // 2)
    assert [name.split(".")[0] for name in names[::2]] == [name.split(".")[0] for name in names[1::2]]


def test_idx_is_what_wds2idx_writes(made: tuple[Path, Path, Plan], tmp_path: Path) -> None:
    _, out, _ = made
    for tar in sorted(out.glob("*/*.tar")):
        script = "import sys, wds2idx\nwith wds2idx.IndexCreator(*sys.argv[1:], verbose=False) as c: c.create_index()"
        subprocess.run([sys.executable, "-c", script, str(tar), str(tmp_path / "idx")], check=True, timeout=60)
        assert tar.with_suffix(".idx").read_bytes() == (tmp_path / "idx").read_bytes()
        assert build_idx(tar) == (tmp_path / "idx").read_bytes()


def test_dataset_opens_and_verifies(made: tuple[Path, Path, Plan]) -> None:
    _, out, plan = made
    dataset = open_dataset(out)
    assert dataset.info.licence == "for tests"
    assert [dataset.info.splits[name].num_samples for name in ("train", "val")] == [51, 34]
    train, val = dataset.split("train"), dataset.split("val")
    assert not set(train.identities()) & set(val.identities())
    assert set(train.identities()) | set(val.identities()) == set(plan.identities())
    assert find_faults(out, lambda _: None) == []
    assert not (out / ".work").exists()


def test_repeating_gives_the_same_bytes(made: tuple[Path, Path, Plan], tmp_path: Path) -> None:
    photos, out, _ = made
    make(photos, tmp_path / "again")
    assert tree(tmp_path / "again") == tree(out)


def test_a_committed_shard_is_left_alone(made: tuple[Path, Path, Plan], monkeypatch: pytest.MonkeyPatch) -> None:
    photos, out, plan = made
    before = tree(out)
    monkeypatch.setattr(shard_module, "process_slice", None)  # calling it would fail
    process_shard(plan, 0, PhotoFiles(photos, True), out, CropMaker(OPTIONS.crop))
    assert tree(out) == before


def test_interrupted_at_every_file(
    made: tuple[Path, Path, Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stop before and after each rename there is; what stands there is complete, and repeating gives the same bytes."""
    photos, out, _ = made
    expected = tree(out)
    replace = os.replace
    for after in (False, True):
        for stop_at in range(1000):
            target = tmp_path / f"{after}-{stop_at}"
            calls = 0

            def interrupted(source: str, destination: str, stop_at: int = stop_at, after: bool = after) -> None:
                nonlocal calls
                calls += 1
                if calls == stop_at + 1 and not after:
                    raise KeyboardInterrupt
                replace(source, destination)
                if calls == stop_at + 1:
                    raise KeyboardInterrupt

            monkeypatch.setattr(os, "replace", interrupted)
            try:
                make(photos, target)
                break  # it got through: every rename has had its turn
            except KeyboardInterrupt:
                found = {name: data for name, data in tree(target).items() if not name.startswith(".")}
                assert found.items() <= expected.items()
            monkeypatch.setattr(os, "replace", replace)
            make(photos, target)
            assert tree(target) == expected
        assert stop_at > 15


def test_damaged_slice_is_made_again(made: tuple[Path, Path, Plan], tmp_path: Path) -> None:
    photos, out, plan = made
    context = shard_module.ShardContext(PhotoFiles(photos, True), tmp_path, plan.options, plan.hash)
    shard, maker = plan.shard(0), CropMaker(OPTIONS.crop)
    rows = shard_module.slice_rows(shard, 0)
    shard_module.process_slice(context, shard.name, 0, rows, maker)
    path = shard_module.slice_path(tmp_path, shard.name, 0)
    path.write_bytes(path.read_bytes()[:1000])
    process_shard(plan, 0, PhotoFiles(photos, True), tmp_path, maker)
    name = "train/train-000000.tar"
    assert (tmp_path / name).read_bytes() == (out / name).read_bytes()


def test_commit_of_another_plan_does_not_count(made: tuple[Path, Path, Plan]) -> None:
    _, out, plan = made
    assert read_commit(out, plan.shard(0), plan.hash) is not None
    assert read_commit(out, plan.shard(0), "another") is None


def test_nothing_usable(tmp_path: Path) -> None:
    (tmp_path / "photos" / "a").mkdir(parents=True)
    (tmp_path / "photos" / "a" / "1.jpg").write_text("no")
    with pytest.raises(UserError, match=r"no usable photo in the split 'train' \(1 not_an_image\)"):
        make(tmp_path / "photos", tmp_path / "out", OPTIONS.model_copy(update={"val_identities": 0.0}))
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_an_identity_with_one_photo_is_kept(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", num_identities=2, photos=1)
    make(tmp_path / "photos", tmp_path / "out", OPTIONS.model_copy(update={"val_identities": 0.0}))
    assert open_dataset(tmp_path / "out").info.splits["train"].num_identities == 2


def test_unfinished_is_not_a_dataset(made: tuple[Path, Path, Plan], tmp_path: Path) -> None:
    photos, _, plan = made
    save_plan(plan, tmp_path)
    process_shard(plan, 0, PhotoFiles(photos, True), tmp_path, CropMaker(OPTIONS.crop))
    with pytest.raises(UserError, match=r"shard train-000001 is not finished"):
        finish_dataset(plan, tmp_path)
    with pytest.raises(UserError, match=r"dataset\.json is missing"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("gone", ["the root", "an identity"])
def test_a_source_that_vanishes_is_no_reject(made: tuple[Path, Path, Plan], tmp_path: Path, gone: str) -> None:
    """Renamed between two slices, the run stops with nothing written, and goes on when it is back."""
    _, out, _ = made
    photos = tmp_path / "photos"
    shutil.copytree(made[0], photos, symlinks=True)
    (photos / "person 0" / "loop").unlink()
    (photos / "person 0" / "loop").symlink_to(photos)
    plan = build_plan(read_source(photos)[1], OPTIONS)
    data, maker = tmp_path / "out", CropMaker(OPTIONS.crop)
    where = photos if gone == "the root" else photos / plan.rows["identity"][0].as_py()
    where.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"cannot be listed any more \(No such file or directory\); was it unmounted"):
        process_shard(plan, 0, PhotoFiles(photos, True), data, maker)
    assert tree(data) == {}
    (tmp_path / "elsewhere").rename(where)
    process_shard(plan, 0, PhotoFiles(photos, True), data, maker)
    name = "train/train-000000.tar"
    assert (data / name).read_bytes() == (out / name).read_bytes()


def test_a_list_may_name_folders_that_are_not_there(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", num_identities=1, photos=2)
    (tmp_path / "photos" / "list.csv").write_text("path,identity\nperson 0/0.jpg,a\ngone/1.jpg,a\n")
    make(tmp_path / "photos" / "list.csv", tmp_path / "out", OPTIONS.model_copy(update={"val_identities": 0.0}))
    assert [row["reject_reason"] for row in manifest(tmp_path / "out")].count("unreadable") == 1


def test_lack_of_memory_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_photos(tmp_path / "photos", num_identities=2, photos=2)
    error = cv2.error("no memory")
    error.code = cv2.Error.StsNoMem

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("preprocess.crops.read_photo", fail)
    with pytest.raises(MemoryError):
        make(tmp_path / "photos", tmp_path / "out")


def test_photos_that_changed_are_read_again(made: tuple[Path, Path, Plan], tmp_path: Path) -> None:
    """Edited between an interrupted run and its repetition, even at the same size: the crops are those of today."""
    photos = tmp_path / "photos"
    write_photos(photos)
    plan = build_plan(read_source(photos)[1], OPTIONS)
    shard, maker = plan.shard(0), CropMaker(OPTIONS.crop)
    for name in ("interrupted", "fresh"):
        context = shard_module.ShardContext(PhotoFiles(photos, True), tmp_path / name, plan.options, plan.hash)
        if name == "interrupted":
            shard_module.process_slice(context, shard.name, 0, shard_module.slice_rows(shard, 0), maker)
            one, other = (photos / source for source in shard.rows["source"].to_pylist()[:2])
            data, status = one.read_bytes(), one.stat()
            one.write_bytes(other.read_bytes()[: len(data)].ljust(len(data), b"\0"))
            os.utime(one, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
        process_shard(plan, 0, PhotoFiles(photos, True), tmp_path / name, maker)
    tars = [(tmp_path / name / "train" / "train-000000.tar").read_bytes() for name in ("interrupted", "fresh")]
    assert tars[0] == tars[1] != (made[1] / "train" / "train-000000.tar").read_bytes()


def test_waiting_slices_are_not_made_twice(
    made: tuple[Path, Path, Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, _, plan = made
    context = shard_module.ShardContext(PhotoFiles(photos, True), tmp_path, plan.options, plan.hash)
    rows = shard_module.slice_rows(plan.shard(2), 0)  # of person 0, who has files of every kind
    shard_module.process_slice(context, "val-000000", 0, rows, CropMaker(OPTIONS.crop))
    monkeypatch.setattr(shard_module, "_process_rows", None)  # calling it would fail
    shard_module.process_slice(context, "val-000000", 0, rows, CropMaker(OPTIONS.crop))
