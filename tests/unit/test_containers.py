"""Photos inside tars, Parquet and RecordIO: listed, found again, and sharded to the same crops as from a folder."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config.errors import UserError
from pipeline.data.manifest import open_dataset
from preprocess.crops import CropMaker, CropOptions
from preprocess.plan import ShardOptions, build_plan, load_plan
from preprocess.shard import process_shard
from preprocess.sources import find_source, list_source, parquet_images, read_source
from preprocess.sources.store import Place
from preprocess.verify import find_faults
from tests.unit.test_recordio import jpegs, write_set
from tests.unit.test_shard import make, manifest
from tests.unit.test_tar_index import pack, special

OPTIONS = ShardOptions(crop=CropOptions(detector="none", size_px=32), samples_per_shard=4)
CONTENTS = jpegs(7)
PEOPLE = [CONTENTS[:3], CONTENTS[3:4], CONTENTS[4:]]
LABELS = [0, 0, 0, 1, 2, 2, 2]


def write_folder(root: Path) -> Path:
    for number, (label, content) in enumerate(zip(LABELS, CONTENTS, strict=True)):
        path = root / str(label) / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def write_tars(root: Path) -> Path:
    root.mkdir()
    for part, numbers in (("b.tar", range(3)), ("a.tar", range(3, 7))):
        members = {}
        for number in numbers:
            members |= {f"{number}.jpg": CONTENTS[number], f"{number}.cls": str(LABELS[number]).encode()}
        (root / part).write_bytes(pack(members))
    return root


def write_parquet(root: Path) -> Path:
    root.mkdir()
    images = [{"bytes": content, "path": None} for content in CONTENTS]
    table = pa.table({"image": images, "label": LABELS})
    pq.write_table(table.slice(0, 3), root / "0.parquet", row_group_size=2)
    pq.write_table(table.slice(3), root / "1.parquet", row_group_size=2)
    return root


def write_rec(root: Path) -> Path:
    return write_set(root, PEOPLE)


WRITERS = {"folder": write_folder, "tars": write_tars, "parquet": write_parquet, "rec": write_rec}


@pytest.mark.parametrize("kind", WRITERS)
def test_same_crops_from_every_source(tmp_path: Path, kind: str) -> None:
    source = WRITERS[kind](tmp_path / "source")
    make(source, tmp_path / "out", OPTIONS)
    rows = manifest(tmp_path / "out")
    crops = {}
    for row in rows:
        tar = (tmp_path / "out" / "train" / f"{row['shard']}.tar").read_bytes()
        crops[row["source_sha256"]] = (row["identity"], tar[row["jpg_offset"] :][: row["jpg_size"]])
    make(write_folder(tmp_path / "photos"), tmp_path / "reference", OPTIONS)
    expected = {}
    for row in manifest(tmp_path / "reference"):
        tar = (tmp_path / "reference" / "train" / f"{row['shard']}.tar").read_bytes()
        expected[row["source_sha256"]] = (row["identity"], tar[row["jpg_offset"] :][: row["jpg_size"]])
    assert len(crops) == 7
    assert crops == expected
    assert find_faults(tmp_path / "out", lambda _: None) == []
    example = {"folder": "0/0.jpg", "tars": "b.tar!0.jpg", "parquet": "0.parquet#0", "rec": "train.rec#1"}[kind]
    assert example in [row["source"] for row in rows]


@pytest.mark.parametrize("kind", WRITERS)
def test_plans_keep_places_and_stores_travel(tmp_path: Path, kind: str) -> None:
    photos, listing, _ = read_source(WRITERS[kind](tmp_path / "source"))
    make(tmp_path / "source", tmp_path / "out", OPTIONS)
    plan = load_plan(tmp_path / "out")
    assert plan.hash == build_plan(listing, OPTIONS).hash
    travelled = pickle.loads(pickle.dumps(photos))
    rows = plan.rows.to_pylist()
    found = [travelled.read(Place(row["source"], row.get("offset"), row.get("num_bytes"))) for row in rows]
    assert sorted(found) == sorted(CONTENTS)
    # opened without listing, as a worker elsewhere does
    elsewhere = find_source(tmp_path / "source").photos()
    assert [elsewhere.read(Place(r["source"], r.get("offset"), r.get("num_bytes"))) for r in rows] == found


def test_plan_of_a_folder_is_that_of_version_0_1(tmp_path: Path) -> None:
    """Its hash stands in every commit record: a new option or column must not change it for those who do not use it."""
    listing = pa.table(
        {
            "source": ["a/1.jpg", "a/2.jpg", "b/1.jpg"],
            "identity": ["a", "a", "b"],
            "bbox": pa.array([None, [1, 2, 3, 4], None], pa.list_(pa.float32(), 4)),
            "landmarks": pa.array([None] * 3, pa.list_(pa.float32(), 10)),
            "problem": ["", "", "symlink_loop"],
        }
    )
    assert (
        build_plan(listing, ShardOptions()).hash == "bf8b0e3b46906099067c00e64d62e9c8f86ba302b17f27ddfd4d81c5a44735aa"
    )


CONTAINER_FILES = {"tars": "a.tar", "parquet": "0.parquet", "rec": "train.rec"}


@pytest.mark.parametrize("kind", CONTAINER_FILES)
@pytest.mark.parametrize("change", ["touched", "replaced", "gone"])
def test_a_container_that_changes_stops_the_run(tmp_path: Path, kind: str, change: str) -> None:
    photos, listing, _ = read_source(WRITERS[kind](tmp_path / "source"))
    path = tmp_path / "source" / CONTAINER_FILES[kind]
    places = [
        Place(row["source"], row.get("offset"), row.get("num_bytes"))
        for row in listing.to_pylist()
        if row["source"].startswith(path.name)
    ]
    photos.read(places[0])
    before = photos.stamp(places[0].source)
    if change == "gone":
        path.unlink()
        with pytest.raises(UserError, match=r"cannot be read \(No such file or directory\)"):
            photos.stamp(places[0].source)
        return
    if change == "replaced":
        (tmp_path / "new").write_bytes(path.read_bytes() + bytes(512))
        os.replace(tmp_path / "new", path)
    else:
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    assert photos.stamp(places[0].source) != before
    fresh = pickle.loads(pickle.dumps(photos))
    if change == "replaced" and kind != "parquet":
        fresh.read(places[-1])  # the open descriptor is that of the file that was listed
    else:
        with pytest.raises(UserError, match="changed while the run was under way"):
            fresh.read(places[-1])


def test_slices_of_a_changed_tar_are_made_again(tmp_path: Path) -> None:
    """Equal places, other content: only the container's time tells."""
    source = tmp_path / "a.tar"
    members = {"x/1.jpg": CONTENTS[0], "x/2.jpg": CONTENTS[0]}
    source.write_bytes(pack(members))
    photos, listing, _ = read_source(source)
    plan = build_plan(listing, OPTIONS)
    from preprocess.shard import ShardContext, process_slice, slice_rows

    maker = CropMaker(OPTIONS.crop)
    context = ShardContext(photos, tmp_path / "out", OPTIONS, plan.hash)
    process_slice(context, "train-000000", 0, slice_rows(plan.shard(0), 0), maker)
    other = CONTENTS[1][: len(CONTENTS[0])].ljust(len(CONTENTS[0]), b"\0")
    source.write_bytes(pack(members | {"x/2.jpg": other}))
    os.utime(source, ns=(0, source.stat().st_mtime_ns + 10**9))
    photos, listing, _ = read_source(source)
    assert build_plan(listing, OPTIONS).hash == plan.hash
    process_shard(plan, 0, photos, tmp_path / "out", maker)
    hashes = {row["source"]: row["source_sha256"] for row in manifest(tmp_path / "out")}
    assert hashes["a.tar!x/1.jpg"] != hashes["a.tar!x/2.jpg"]


# --- tars ---


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"a/1.jpg": b"x", "b/c/2.png": b"x"}, ["a", "b"]),
        ({"./a/1.jpg": b"x"}, ["a"]),
        ({"1.jpg": b"x", "1.cls": b" 17\n"}, ["17"]),
        ({"1.jpg": b"x", "1.json": b'{"identity": "Ann"}'}, ["Ann"]),
        ({"1.jpg": b"x", "1.json": b'{"label": 3, "x": []}'}, ["3"]),
        ({"1.jpg": b"x", "1.json": b'{"label": 3}', "1.cls": b"4"}, ["4"]),
        ({"1.jpg": b"x", "1.cls": b"4", "1.json": b'{"label": 3}'}, ["4"]),
        ({"a/1.left.jpg": b"x", "a/1.right.jpg": b"y", "a/1.cls": b"9"}, ["9", "9"]),
    ],
)
def test_labels_in_tars(tmp_path: Path, members: dict[str, bytes], expected: list[str]) -> None:
    (tmp_path / "x.tar").write_bytes(pack(members))
    assert read_source(tmp_path / "x.tar")[1]["identity"].to_pylist() == expected


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"1.jpg": b"x"}, "x.tar!1.jpg: no label; expected KEY.cls, or KEY.json"),
        ({"1.jpg": b"x", "1.cls": b""}, "x.tar!1.jpg: label ''"),
        ({"1.jpg": b"x", "1.cls": b"\xff"}, "x.tar!1.jpg: label '�'"),
        ({"1.jpg": b"x", "1.json": b"{}"}, "x.tar!1.jpg: label '{}'"),
        ({"1.jpg": b"x", "1.json": b'{"label": true}'}, "x.tar!1.jpg: label"),
        ({"1.jpg": b"x", "1.json": b"[" * 60000}, "x.tar!1.jpg: label '[[["),
        ({"1.jpg": b"x", "1.cls": b"1" * 70000}, "x.tar!1.jpg: a label of 70,000 bytes; expected at most 65,536"),
        ({"1.cls": b"1", "a.txt": b"1", ".hidden.jpg": b""}, "no photos; passed over 1 members: hidden; "),
    ],
)
def test_tars_without_labels(tmp_path: Path, members: dict[str, bytes], said: str) -> None:
    (tmp_path / "x.tar").write_bytes(pack(members))
    with pytest.raises(UserError) as caught:
        read_source(tmp_path / "x.tar")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_a_tar_holds_besides_is_said(tmp_path: Path) -> None:
    members = {"a/1.jpg": b"x", "a/1.txt": b"", "a/2.cls": b"3", "a/.h.jpg": b""}
    (tmp_path / "x.tar").write_bytes(pack(members))
    assert read_source(tmp_path / "x.tar")[2] == [
        "passed over 1 members: hidden",
        "passed over 1 members: labels without a photo",
        "passed over 1 members: neither a photo nor a label",
    ]


def test_a_refused_member_is_named_with_its_tar(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(special("a/1.jpg", tarfile.SYMTYPE, "/etc/passwd"))
    with pytest.raises(UserError, match=r"x\.tar: byte 0: 'a/1\.jpg' is a symbolic link"):
        read_source(tmp_path)


def test_a_member_name_that_is_not_utf8_is_a_reject(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:", format=tarfile.USTAR_FORMAT, errors="surrogateescape") as archive:
        info = tarfile.TarInfo("a/\udcff.jpg")
        archive.addfile(info)
    (tmp_path / "x.tar").write_bytes(buffer.getvalue())
    row = read_source(tmp_path / "x.tar")[1].to_pylist()[0]
    assert (row["source"], row["problem"]) == ("x.tar!a/\\xff.jpg", "bad_name")


# --- Parquet ---


def test_classes_that_hugging_face_names(tmp_path: Path) -> None:
    names = {"info": {"features": {"label": {"names": ["Ann", "Bob"], "_type": "ClassLabel"}}}}
    table = pa.table({"bytes": [b"x", b"y"], "label": [1, 0], "more": [1, 2]})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(names)}), tmp_path / "a.parquet")
    photos, listing, notes = read_source(tmp_path / "a.parquet")
    assert listing["identity"].to_pylist() == ["Bob", "Ann"]
    assert notes == ["columns not used: more"]
    assert photos.read(Place("a.parquet#1")) == b"y"


def test_hugging_face_writes_what_we_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["x", "y", "z"])})
    rows = {"image": [{"bytes": content, "path": None} for content in CONTENTS], "label": LABELS}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "a.parquet")
    photos, listing, _ = read_source(tmp_path / "a.parquet")
    assert listing["identity"].to_pylist() == ["xyz"[label] for label in LABELS]
    assert [photos.read(Place(source)) for source in listing["source"].to_pylist()] == CONTENTS


def test_boxes_in_parquet(tmp_path: Path) -> None:
    table = pa.table({"image": [b"x", b"y"], "identity": ["a", "b"], "bbox": [[1, 2, 3, 4], None]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert read_source(tmp_path / "a.parquet")[1]["bbox"].to_pylist() == [[1, 2, 3, 4], None]


def test_a_photo_that_is_null_is_a_reject(tmp_path: Path) -> None:
    table = pa.table({"image": pa.array([CONTENTS[0], None], pa.binary()), "identity": ["a", "a"]})
    pq.write_table(table, tmp_path / "a.parquet")
    make(tmp_path / "a.parquet", tmp_path / "out", OPTIONS)
    assert open_dataset(tmp_path / "out").info.reject_counts == {"empty_file": 1}


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"image": [b"x"]}, "the columns image; expected one of identity, label"),
        ({"image": [b"x"], "identity": [""]}, "row 0: identity is ''; expected text or a whole number"),
        ({"image": [b"x"], "identity": [None]}, "row 0: identity is None"),
        ({"image": [b"x"], "label": [1.5]}, "row 0: identity is 1.5"),
        ({"image": [b"x"], "label": ["a"], "bbox": [[1, 2]]}, "row 0: bbox is [1, 2]; expected 4 numbers"),
        ({"image": ["text"], "label": ["a"]}, "no column 'path'"),  # then it is a list
    ],
)
def test_parquet_that_cannot_be_used(tmp_path: Path, columns: dict[str, list[object]], said: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(UserError) as caught:
        read_source(tmp_path / "a.parquet")
    assert said in str(caught.value)


def test_row_groups_that_are_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_images, "MAX_ROW_GROUP_BYTES", 2**20)
    table = pa.table({"image": [os.urandom(2**19)] * 3, "identity": ["a"] * 3})
    pq.write_table(table, tmp_path / "a.parquet", use_dictionary=False)
    with pytest.raises(UserError, match=r"row group 0 holds 2 MiB of photos, .* row_group_size=100"):
        read_source(tmp_path / "a.parquet")
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=1, use_dictionary=False)
    assert len(read_source(tmp_path / "a.parquet")[1]) == 3


# --- what stands there ---


def test_folders_of_people_win_over_what_lies_beside_them(tmp_path: Path) -> None:
    """`preprocess synth` leaves a Parquet list beside the people it rendered."""
    write_folder(tmp_path)
    (tmp_path / "annotations.parquet").touch()
    (tmp_path / "backup.tar").touch()
    _, listing, notes = read_source(tmp_path)
    assert len(listing) == 7
    assert notes == ["passed over 2 files: not a photo's suffix"]


def test_named_files_of_a_folder(tmp_path: Path) -> None:
    write_tars(tmp_path / "x")
    write_rec(tmp_path / "y")
    (tmp_path / "y" / "more").mkdir()
    assert len(read_source(tmp_path / "y")[1]) == 7
    (tmp_path / "x" / "b.parquet").touch()
    with pytest.raises(
        UserError, match=r"several sources \(a\.tar, b\.tar, b\.parquet\).* name the file that is meant"
    ):
        read_source(tmp_path / "x")
    assert len(read_source(tmp_path / "x" / "a.tar")[1]) == 4


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("x.gif", "a file of the unknown kind '.gif'; expected a folder of identity folders, a .csv, "),
        ("x.bin", "preprocess import-bin "),
        ("x.idx", "name x.rec"),
        ("x.rec", "no photos"),
        ("x.tar", "the archive ends without its end mark"),
        ("x.parquet", "unreadable list"),
    ],
)
def test_files_that_are_no_source(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(UserError) as caught:
        read_source(tmp_path / name)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("pipe:cat x.tar", "a pipe: URL, which would run a command"),
        ("pipe:curl http://x/y.tar", "a pipe: URL, which would run a command"),
        ("http://host/x.tar", "a URL (http:)"),
        ("s3://bucket/x", "a URL (s3:)"),
    ],
)
def test_urls_are_refused_by_name(url: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        find_source(Path(url))
    assert said in str(caught.value)


def test_a_folder_with_a_colon_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_folder(Path("pipe:dream"))
    assert len(read_source(Path("pipe:dream"))[1]) == 7


def test_a_gigabyte_of_bomb_in_a_tar_is_a_reject(tmp_path: Path) -> None:
    """A PNG whose header claims 60,000 px squared: judged by its header, wherever it stands."""
    from tests.unit.test_photo import png_header

    members = {"a/bomb.png": png_header(60_000, 60_000), "a/ok.jpg": CONTENTS[0]}
    (tmp_path / "x.tar").write_bytes(pack(members))
    make(tmp_path / "x.tar", tmp_path / "out", OPTIONS)
    assert open_dataset(tmp_path / "out").info.reject_counts == {"too_large": 1}


def test_listing_tells_how_far_it_is(tmp_path: Path) -> None:
    for kind in ("tars", "parquet", "rec"):
        source = find_source(WRITERS[kind](tmp_path / kind))
        told: list[int] = []
        list_source(source, told.append)
        assert told == sorted(told)
        assert kind == "rec" or told[-1] == source.num_bytes
        assert source.where == tmp_path / kind / ("train.rec" if kind == "rec" else "")
