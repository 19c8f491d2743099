"""`preprocess verify` names the shard, the key and the byte of each fault."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config.errors import UserError
from pipeline.data.dataset_format import ShardCommit, dataset_digest
from pipeline.data.manifest import open_dataset
from preprocess.verify import Fault, find_faults
from tests.unit.test_shard import make, write_photos

TAR, IDX = "train/train-000000.tar", "train/train-000000.idx"
MANIFEST, COMMIT = "manifest/train-000000.parquet", "commits/train-000000.json"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("verify")
    write_photos(root / "photos", num_identities=4, photos=8)
    make(root / "photos", root / "out")
    return root / "out"


@pytest.fixture
def out(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "out"))


def faults(out: Path) -> list[Fault]:
    return find_faults(out, lambda _: None)


def kept(out: Path, number: int) -> dict:
    rows = pq.read_table(out / MANIFEST).to_pylist()
    return [row for row in rows if row["status"] == "kept"][number]


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 0x10
    path.write_bytes(content)


def test_sound(out: Path) -> None:
    assert faults(out) == []


def test_flipped_bit_in_a_jpeg(out: Path) -> None:
    row = kept(out, 3)
    flip(out / TAR, row["jpg_offset"] + row["jpg_size"] - 20)
    assert faults(out) == [Fault("train-000000", row["key"], row["jpg_offset"], "JPEG does not match its CRC")]
    assert str(faults(out)[0]).startswith(f"train-000000, key {row['key']}, byte {row['jpg_offset']}: ")


def test_changed_label(out: Path) -> None:
    row = kept(out, 2)
    flip(out / TAR, row["jpg_offset"] - 1024)
    assert [(f.key, f.offset) for f in faults(out)] == [(row["key"], row["jpg_offset"] - 1024)]


@pytest.mark.parametrize("back", [512, 514, 1536])
def test_changed_header_or_padding(out: Path, back: int) -> None:
    row = kept(out, 2)
    flip(out / TAR, row["jpg_offset"] - back)
    assert [(f.key, f.offset) for f in faults(out)] == [(row["key"], row["jpg_offset"] - back)]


def test_changed_end_of_tar(out: Path) -> None:
    size = (out / TAR).stat().st_size
    flip(out / TAR, size - 1)
    assert [(f.key, f.offset) for f in faults(out)] == [("", size - 1)]


def test_truncated_tar(out: Path) -> None:
    row = kept(out, 3)
    cut = row["jpg_offset"] + 10
    (out / TAR).write_bytes((out / TAR).read_bytes()[:cut])
    found = faults(out)
    assert (found[0].key, found[0].offset) == ("", cut)
    assert (found[1].key, found[1].offset) == (row["key"], row["jpg_offset"])
    assert len(found) == 1 + sum(1 for r in pq.read_table(out / MANIFEST).to_pylist() if r["row"] >= 3)


def test_grown_tar(out: Path) -> None:
    size = (out / TAR).stat().st_size
    (out / TAR).write_bytes((out / TAR).read_bytes() + b"more")
    assert [(f.shard, f.offset) for f in faults(out)] == [("train-000000", size)]


@pytest.mark.parametrize(
    ("name", "word"), [(TAR, "tar"), (IDX, "idx"), (MANIFEST, "manifest"), (COMMIT, "commit record")]
)
def test_missing_file(out: Path, name: str, word: str) -> None:
    (out / name).unlink()
    found = faults(out)
    assert [fault.shard for fault in found] == ["train-000000"]
    assert f"{word} missing" in found[0].what


def test_edited_idx(out: Path) -> None:
    content = (out / IDX).read_bytes()
    (out / IDX).write_bytes(content.replace(b"jpg 15", b"jpg 16", 1))
    assert [(f.what, f.offset) for f in faults(out)] == [("idx changed", content.index(b"jpg 15") + 5)]


def test_edited_manifest(out: Path) -> None:
    table = pq.read_table(out / MANIFEST)
    labels = pa.array([label + 1 for label in table["label"].to_pylist()])
    place = table.schema.get_field_index("label")
    pq.write_table(table.set_column(place, table.schema.field(place), labels), out / MANIFEST)
    found = faults(out)
    assert "manifest changed" in found[0].what
    assert all("label member" in fault.what for fault in found[1:])


@pytest.mark.parametrize("content", [b"", b"PAR1 nonsense"])
def test_ruined_manifest(out: Path, content: bytes) -> None:
    (out / MANIFEST).write_bytes(content)
    assert [f.what.split(":")[0] for f in faults(out)] == ["manifest changed"]


def test_commit_that_was_tampered_with(out: Path) -> None:
    commit = json.loads((out / COMMIT).read_text())
    (out / COMMIT).write_text(json.dumps(commit | {"num_samples": 1}))
    assert "the commit records say" in str(faults(out)[-1])
    (out / COMMIT).write_text(json.dumps(commit | {"tar_sha256": "0" * 64}))
    assert [f.what for f in faults(out)] == [
        "tar is sound but its sha256 is not the commit record's",
        "the digest is not that of the commit records",
    ]


def test_edited_plan_hash(out: Path) -> None:
    commit = json.loads((out / COMMIT).read_text())
    (out / COMMIT).write_text(json.dumps(commit | {"plan_hash": "0" * 64}))
    assert [str(f) for f in faults(out)] == ["train-000000: the commit record's plan_hash is not that of plan.parquet"]


def test_ruined_plan(out: Path) -> None:
    (out / "plan.parquet").write_bytes(b"PAR1")
    assert [f.shard for f in faults(out)] == ["plan.parquet"]


def test_count_that_was_changed_in_both_records(out: Path) -> None:
    commit, info = json.loads((out / COMMIT).read_text()), json.loads((out / "dataset.json").read_text())
    commit["num_rejected"] += 1
    info["splits"]["train"]["num_rejected"] += 1
    (out / COMMIT).write_text(json.dumps(commit))
    (out / "dataset.json").write_text(json.dumps(info))
    assert [f.shard for f in faults(out)] == ["train-000000"]
    assert "the commit record counts" in str(faults(out)[0])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", 1),
        ("licence", "other"),
        ("label_map_sha256", "0" * 64),
        ("reject_counts", {}),
        ("codec", {"format": "jpeg", "quality": 94}),
        ("crop", {"size_px": 32, "template": [0.0] * 10}),
        ("detector", {"name": "mtcnn", "weights_sha256": "", "options": {}}),
        ("versions", {}),
        ("instruction_set", "none"),
    ],
)
def test_edited_description(out: Path, field: str, value: object) -> None:
    info = json.loads((out / "dataset.json").read_text())
    (out / "dataset.json").write_text(json.dumps(info | {field: value}))
    [fault] = faults(out)
    assert str(fault).startswith(f"dataset.json: {field} is {value!r}, expected ")


def test_edited_identities_and_shards(out: Path) -> None:
    info = json.loads((out / "dataset.json").read_text())
    info["splits"]["train"]["num_identities"] -= 1
    (out / "dataset.json").write_text(json.dumps(info))
    [fault] = faults(out)
    assert str(fault).startswith("dataset.json: splits.train.num_identities is 2, expected 3")
    del info["splits"]["val"]
    info["digest"] = dataset_digest([ShardCommit.model_validate_json((out / COMMIT).read_text())])
    (out / "dataset.json").write_text(json.dumps(info))
    assert faults(out)[0].what == "splits: val/val-000000 is missing"


def test_edited_index(out: Path) -> None:
    index = open_dataset(out).split("train")
    place = (out / "index.arrow").read_bytes().index(index.label.tobytes())
    flip(out / "index.arrow", place)
    assert [(f.shard, f.what[:27]) for f in faults(out)] == [("index.arrow", "differs from the manifests;")]


@pytest.mark.parametrize("content", [None, b"", b"ARROW1 nonsense"])
def test_an_index_that_is_made_again_is_no_fault(out: Path, content: bytes | None) -> None:
    (out / "index.arrow").unlink()
    if content is not None:
        (out / "index.arrow").write_bytes(content)
    assert faults(out) == []


@pytest.mark.parametrize("name", ["train/train-000009.tar", "manifest/x", "commits/train-000009.json", "val/old.idx"])
def test_file_that_does_not_belong(out: Path, name: str) -> None:
    (out / name).touch()
    assert [str(f) for f in faults(out)] == [f"{name}: does not belong to the data set"]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("jpg_offset", 2**62),
        ("jpg_offset", -5),
        ("jpg_offset", 0),
        ("jpg_offset", None),
        ("jpg_size", 2**62),
        ("jpg_size", -1),
        ("jpg_size", None),
        ("jpg_crc32", None),
        ("label", None),
        ("key", None),
        ("key", "k" * 300),
        ("status", None),
    ],
)
def test_garbage_in_a_manifest(out: Path, column: str, value: object) -> None:
    table = pq.read_table(out / MANIFEST)
    values = table[column].to_pylist()
    values[table["status"].to_pylist().index("kept")] = value
    place = table.schema.get_field_index(column)
    field = table.schema.field(place)
    pq.write_table(table.set_column(place, field, pa.array(values, field.type)), out / MANIFEST)
    flip(out / TAR, (out / TAR).stat().st_size - 1)  # which makes it look between the samples too
    found = faults(out)
    assert "manifest changed" in found[0].what
    assert len(found) >= 2
    assert all("\n" not in str(fault) for fault in found)


def test_tar_that_cannot_be_read(out: Path) -> None:
    (out / TAR).unlink()
    (out / TAR).symlink_to("/proc/self/mem")  # a regular file; reading its first byte gives EIO
    assert "tar cannot be read (Input/output error)" in [f.what for f in faults(out)]


def test_faults_of_several_shards_are_all_named(out: Path) -> None:
    flip(out / TAR, kept(out, 0)["jpg_offset"] + 30)
    (out / "val" / "val-000000.tar").unlink()
    assert {fault.shard for fault in faults(out)} == {"train-000000", "val-000000"}


def test_not_a_dataset(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dataset\.json is missing"):
        faults(tmp_path)
