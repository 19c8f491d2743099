"""Listing photos: order, links, odd files, and lists in CSV and Parquet."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config.errors import UserError
from preprocess.sources import read_source
from preprocess.sources.store import PhotoFiles


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def test_folder_order_and_identities(tmp_path: Path) -> None:
    touch(tmp_path, "b/2.JPG", "b/10.jpg", "a/deep/er/1.png", "a/1.webp", "Z/ü.jpeg")
    photos, table, notes = read_source(tmp_path)
    assert (photos, notes) == (PhotoFiles(tmp_path, identity_folders=True), [])
    assert table["source"].to_pylist() == ["Z/ü.jpeg", "a/1.webp", "a/deep/er/1.png", "b/10.jpg", "b/2.JPG"]
    assert table["identity"].to_pylist() == ["Z", "a", "a", "b", "b"]


def test_what_is_passed_over_is_said(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg", "a/notes.txt", "a/.hidden.jpg", ".git/x.jpg", "loose.jpg", "pairs.txt")
    _, table, notes = read_source(tmp_path)
    assert table["source"].to_pylist() == ["a/1.jpg"]
    assert notes == [
        "passed over 1 files: beside the identity folders",
        "passed over 2 files: hidden",
        "passed over 2 files: not a photo's suffix",
    ]


def test_links(tmp_path: Path) -> None:
    touch(tmp_path, "photos/a/1.jpg", "elsewhere/2.jpg")
    photos = tmp_path / "photos"
    (photos / "a" / "back").symlink_to(photos)
    (photos / "a" / "self").symlink_to(photos / "a" / "self")
    (photos / "a" / "gone.jpg").symlink_to(tmp_path / "gone.jpg")
    (photos / "a" / "file.jpg").symlink_to(tmp_path / "elsewhere" / "2.jpg")
    (photos / "b").symlink_to(tmp_path / "elsewhere")
    _, table, _ = read_source(photos)
    assert list(zip(table["source"].to_pylist(), table["problem"].to_pylist(), strict=True)) == [
        ("a/1.jpg", ""),
        ("a/back", "symlink_loop"),
        ("a/file.jpg", ""),
        ("a/gone.jpg", ""),  # becomes a reject when it is read
        ("a/self", "symlink_loop"),
        ("b/2.jpg", ""),
    ]


def test_two_folders_that_link_to_each_other(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg", "b/2.jpg")
    (tmp_path / "a" / "to_b").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "to_a").symlink_to(tmp_path / "a")
    _, table, _ = read_source(tmp_path)
    assert table["problem"].to_pylist().count("symlink_loop") == 2


def test_name_that_is_not_utf8(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/a"
    os.mkdir(folder)
    with open(folder + b"/\xff.jpg", "wb"):
        pass
    _, table, _ = read_source(tmp_path)
    assert table.to_pylist()[0]["problem"] == "bad_name"


@pytest.mark.parametrize("make", ["missing", "empty", "no photos", "text"])
def test_useless_sources(tmp_path: Path, make: str) -> None:
    source = tmp_path / "source"
    if make == "text":
        source.write_text("hello")
    elif make != "missing":
        source.mkdir()
    if make == "no photos":
        touch(source, "a/1.txt")
    with pytest.raises(UserError) as caught:
        read_source(source)
    assert str(source) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_folder_without_permission(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg")
    (tmp_path / "a").chmod(0)
    try:
        with pytest.raises(UserError, match="cannot be listed"):
            read_source(tmp_path)
    finally:
        (tmp_path / "a").chmod(0o755)


def test_csv(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text('path,identity,bbox,extra\nz.jpg,007,1 2 3 4,x\n/abs/y.jpg,Ann,,x\na.jpg,"Ann, B",1;2;3;4.5,x\n')
    photos, table, notes = read_source(path)
    assert photos == PhotoFiles(tmp_path)
    assert notes == ["columns not used: extra"]
    assert table["source"].to_pylist() == ["/abs/y.jpg", "a.jpg", "z.jpg"]
    assert table["identity"].to_pylist() == ["Ann", "Ann, B", "007"]
    assert table["bbox"].to_pylist() == [None, [1, 2, 3, 4.5], [1, 2, 3, 4]]


def test_parquet_with_landmarks(tmp_path: Path) -> None:
    path = tmp_path / "list.parquet"
    content = {"path": ["b.jpg", "a.jpg"], "identity": [3, 1], "landmarks": [list(range(10)), None]}
    pq.write_table(pa.table(content), path)
    _, table, _ = read_source(path)
    assert table["identity"].to_pylist() == ["1", "3"]
    assert table["landmarks"].to_pylist() == [None, list(range(10))]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("file,identity\na.jpg,1\n", "no column 'path'"),
        ("path,identity\na.jpg,\n", "identity is ''"),
        ("path,identity,bbox\na.jpg,1,1 2 3\n", "4 numbers"),
        ("path,identity,bbox\na.jpg,1,one two three four\n", "4 numbers"),
        ("path,identity\na.jpg\n", "unreadable list"),
        ("", "unreadable list"),
        ("path,identity\n", "no photos"),
    ],
)
def test_bad_lists(tmp_path: Path, text: str, found: str) -> None:
    path = tmp_path / "list.csv"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_source(path)
    assert found in str(caught.value)
    assert "\n" not in str(caught.value)


def test_columns_of_one_name(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text("path,identity,x,x\na.jpg,1,2,3\n")
    assert read_source(path)[2] == ["columns not used: x, x"]
    path.write_text("path,identity,identity\na.jpg,1,2\n")
    with pytest.raises(UserError, match="2 columns 'identity'; expected one"):
        read_source(path)


@pytest.mark.parametrize("content", [b"path,identity,n\xe9\na.jpg,1,2\n", b"path,identity\na.jpg,n\xe9\n"])
def test_csv_that_is_not_utf8(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "list.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match="unreadable list"):
        read_source(path)


def test_broken_parquet(tmp_path: Path) -> None:
    path = tmp_path / "list.parquet"
    path.write_bytes(b"PAR1 nonsense")
    with pytest.raises(UserError, match="unreadable list"):
        read_source(path)
