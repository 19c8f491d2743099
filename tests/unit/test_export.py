"""Data sets back to folders and RecordIO, and the round trips that lose nothing."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import pytest

from pipeline.config.errors import UserError
from pipeline.data.manifest import open_dataset
from preprocess import export as export_package
from preprocess.crops import CropOptions
from preprocess.export import FORMATS, open_samples
from preprocess.plan import ShardOptions
from preprocess.sources import read_source
from preprocess.sources.store import Place
from preprocess.verify import find_faults
from preprocess.withdraw import withdraw
from tests.unit.test_containers import PEOPLE, write_folder, write_rec
from tests.unit.test_recordio import jpegs, write_set
from tests.unit.test_shard import make, manifest, tree

KEEP = ShardOptions(crop=CropOptions(detector="none", size_px=32), samples_per_shard=4, keep_jpegs=True)


def export(data: Path, out: Path, kind: str, split: str = "train") -> None:
    FORMATS[kind](open_samples(data, out, kind, split), out, lambda _: None)


def images_by_label(folder: Path) -> dict[str, list[bytes]]:
    photos, table, _ = read_source(folder)
    found: dict[str, list[bytes]] = {}
    for row in table.to_pylist():
        data = photos.read(Place(row["source"], row.get("offset"), row.get("num_bytes")))
        found.setdefault(row["identity"], []).append(data)
    return found


def test_rec_to_rec_keeps_labels_and_bytes(tmp_path: Path) -> None:
    """Eleven people: in the order of their names' bytes, 10 would come before 2."""
    contents = jpegs(24)
    people = [contents[2 * i : 2 * i + 2] for i in range(10)] + [contents[20:]]
    source = write_set(tmp_path / "faces", people)
    make(source, tmp_path / "data", KEEP)
    assert find_faults(tmp_path / "data", lambda _: None) == []
    export(tmp_path / "data", tmp_path / "back", "rec")
    found = images_by_label(tmp_path / "back")
    assert found == {str(label): images for label, images in enumerate(people)} == images_by_label(source)
    assert (tmp_path / "back" / "property").read_text() == "11,32,32\n"
    assert sorted(tree(tmp_path / "back")) == ["property", "train.idx", "train.lst", "train.rec"]


def test_rec_follows_the_format_to_the_letter(tmp_path: Path) -> None:
    """Read by offsets alone: images, then people, then key 0, whose labels tell where the people's records are."""
    make(write_rec(tmp_path / "faces"), tmp_path / "data", KEEP)
    export(tmp_path / "data", tmp_path / "back", "rec")
    data = (tmp_path / "back" / "train.rec").read_bytes()
    lines = [tuple(map(int, line.split("\t"))) for line in (tmp_path / "back" / "train.idx").read_text().splitlines()]
    assert [key for key, _ in lines] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0]
    headers = {}
    for key, offset in lines:
        magic, word = struct.unpack_from("<II", data, offset)
        assert (magic, word >> 29) == (0xCED7230A, 0)
        flag, label, own_key, id2 = struct.unpack_from("<IfQQ", data, offset + 8)
        assert (own_key, id2) == (key, 0)
        labels = struct.unpack_from(f"<{flag}f", data, offset + 32) if flag else label
        headers[key] = (flag, labels, data[offset + 32 + 4 * flag : offset + 8 + word % 2**29])
    assert headers[0] == (2, (8.0, 11.0), b"")
    assert [headers[key] for key in (8, 9, 10)] == [(2, (1.0, 4.0), b""), (2, (4.0, 5.0), b""), (2, (5.0, 8.0), b"")]
    images = [image for person in PEOPLE for image in person]
    assert [headers[key] for key in range(1, 8)] == [
        (0, float(label), image) for label, image in zip([0, 0, 0, 1, 2, 2, 2], images, strict=True)
    ]
    lst = (tmp_path / "back" / "train.lst").read_text().splitlines()
    assert lst[0] == "1\t0/000000000.jpg\t0"
    assert [line.split("\t")[2] for line in lst] == ["0", "0", "0", "1", "2", "2", "2"]


def test_people_with_names_get_the_numbers_of_their_order(tmp_path: Path) -> None:
    photos = write_folder(tmp_path / "photos")
    for old, new in (("0", "Zoë"), ("1", "Ann"), ("2", "2")):
        (photos / old).rename(photos / new)
    make(photos, tmp_path / "data", KEEP)
    export(tmp_path / "data", tmp_path / "back", "rec")
    lines = [line.split("\t") for line in (tmp_path / "back" / "train.lst").read_text().splitlines()]
    assert {(path.split("/")[0], label) for _, path, label in lines} == {("2", "0"), ("Ann", "1"), ("Zoë", "2")}


def test_folders_and_back_is_the_same_data_set(tmp_path: Path) -> None:
    make(write_folder(tmp_path / "photos"), tmp_path / "data", KEEP)
    export(tmp_path / "data", tmp_path / "back", "folders")
    assert images_by_label(tmp_path / "back") == images_by_label(tmp_path / "photos")
    rows = {row["key"]: row for row in manifest(tmp_path / "data")}
    for path in (tmp_path / "back").glob("*/*.jpg"):
        assert (path.parent.name, zlib.crc32(path.read_bytes())) == (
            rows[path.stem]["identity"],
            rows[path.stem]["jpg_crc32"],
        )
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_one_split_at_a_time(tmp_path: Path) -> None:
    options = KEEP.model_copy(update={"val_identities": 0.34})
    make(write_folder(tmp_path / "photos"), tmp_path / "data", options)
    found = {}
    for split in ("train", "val"):
        export(tmp_path / "data", tmp_path / split, "folders", split)
        found[split] = images_by_label(tmp_path / split)
    assert found["train"].keys() & found["val"].keys() == set()
    assert found["train"] | found["val"] == images_by_label(tmp_path / "photos")


@pytest.mark.parametrize("kind", FORMATS)
def test_interrupted_anywhere_it_finishes_the_same(tmp_path: Path, kind: str) -> None:
    make(write_folder(tmp_path / "photos"), tmp_path / "data", KEEP)
    export(tmp_path / "data", tmp_path / "whole", kind)
    for stop_at in range(1, 8):
        out = tmp_path / f"{stop_at}"
        calls = []

        def advance(count: int, calls: list[int] = calls, stop_at: int = stop_at) -> None:
            calls.append(count)
            if len(calls) == stop_at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            FORMATS[kind](open_samples(tmp_path / "data", out, kind, "train"), out, advance)
        assert not out.exists()
        export(tmp_path / "data", out, kind)
        assert tree(out) == tree(tmp_path / "whole")


def test_a_half_written_photo_is_written_again(tmp_path: Path) -> None:
    make(write_folder(tmp_path / "photos"), tmp_path / "data", KEEP)
    samples = open_samples(tmp_path / "data", tmp_path / "out", "folders", "train")
    work = tmp_path / f".out.{samples.origin}.unfinished"
    for name, size in (("0/000000000.jpg", 10), ("0/000000001.jpg", len(PEOPLE[0][1]))):
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_bytes(bytes(size))
    export(tmp_path / "data", tmp_path / "out", "folders")
    assert images_by_label(tmp_path / "out") == images_by_label(tmp_path / "photos")


@pytest.mark.parametrize("kind", FORMATS)
def test_a_damaged_photo_is_named(tmp_path: Path, kind: str) -> None:
    make(write_folder(tmp_path / "photos"), tmp_path / "data", KEEP)
    row = manifest(tmp_path / "data")[0]
    path = tmp_path / "data" / "train" / f"{row['shard']}.tar"
    data = bytearray(path.read_bytes())
    data[row["jpg_offset"] + 50] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=rf"train-000000\.tar: key {row['key']} is damaged; preprocess verify "):
        export(tmp_path / "data", tmp_path / "out", kind)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("kind", "name", "said"),
    [
        ("folders", "../../etc", "identity '../../etc': cannot be a folder's name"),
        ("folders", "a/b", "identity 'a/b': cannot be a folder's name"),
        ("folders", "..", "identity '..': cannot be a folder's name"),
        ("folders", ".hidden", "identity '.hidden': cannot be a folder's name"),
        ("folders", "x" * 256, "cannot be a folder's name"),
        ("rec", "a\tb", r"identity 'a\tb': cannot stand in train.lst"),
    ],
)
def test_names_that_would_lead_astray(tmp_path: Path, kind: str, name: str, said: str) -> None:
    write_folder(tmp_path / "photos")
    (tmp_path / "photos" / "list.csv").write_text(f'path,identity\n0/0.jpg,"{name}"\n1/3.jpg,ok\n')
    make(tmp_path / "photos" / "list.csv", tmp_path / "data", KEEP)
    with pytest.raises(UserError) as caught:
        export(tmp_path / "data", tmp_path / "out", kind)
    assert said in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "photos"]


def test_what_rec_cannot_count_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(write_folder(tmp_path / "photos"), tmp_path / "data", KEEP)
    monkeypatch.setattr("preprocess.export.rec.MAX_EXACT_LABEL", 11)
    with pytest.raises(UserError, match=r"11 records, and \.rec files count them in float32; expected fewer than 11"):
        export(tmp_path / "data", tmp_path / "out", "rec")


def test_mistakes(tmp_path: Path) -> None:
    make(write_folder(tmp_path / "photos"), tmp_path / "data", KEEP)
    for words, said in (
        ((tmp_path / "data", tmp_path / "out", "zip", "train"), "--format: unknown format 'zip'; expected one of "),
        ((tmp_path / "data", tmp_path / "out", "rec", "test"), "no split 'test'; expected one of train"),
        ((tmp_path / "data", tmp_path / "photos", "rec", "train"), "photos: exists already; expected a new folder"),
        ((tmp_path / "photos", tmp_path / "out", "rec", "train"), "dataset.json is missing"),
        ((Path("pipe:cat x"), tmp_path / "out", "rec", "train"), "a pipe: URL, which would run a command"),
    ):  # fmt: skip
        with pytest.raises(UserError) as caught:
            open_samples(*words)
        assert said in str(caught.value)
    withdraw(tmp_path / "data", {"key": ["000000001"]}, "")
    with pytest.raises(UserError, match="photos were withdrawn from it"):
        open_samples(tmp_path / "data", tmp_path / "out", "rec", "train")
    assert set(export_package.FORMATS) == {"folders", "rec"}


def test_kept_jpegs_are_recorded_and_others_encoded(tmp_path: Path) -> None:
    photos = write_folder(tmp_path / "photos")
    (photos / "0" / "0.jpg").write_bytes(PEOPLE[0][0] + b"\0")  # something rides along: encoded again
    make(photos, tmp_path / "data", KEEP)
    assert open_dataset(tmp_path / "data").info.codec.keeps_jpegs
    assert find_faults(tmp_path / "data", lambda _: None) == []
    kept = {row["source"]: row for row in manifest(tmp_path / "data")}
    for source, row in kept.items():
        tar = (tmp_path / "data" / "train" / f"{row['shard']}.tar").read_bytes()
        stored = tar[row["jpg_offset"] :][: row["jpg_size"]]
        assert (stored == (photos / source).read_bytes()) is (source != "0/0.jpg")
    make(photos, tmp_path / "encoded", KEEP.model_copy(update={"keep_jpegs": False}))
    description = json.loads((tmp_path / "encoded" / "dataset.json").read_text())
    assert description["codec"] == {"format": "jpeg", "quality": 95}
    assert description["digest"] != open_dataset(tmp_path / "data").info.digest
