"""Folders and URLs: what is opened, and what is refused by name."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pipeline.config.errors import UserError
from pipeline.config.load import validate_config
from pipeline.config.location import RemotePath, parse_location
from pipeline.data.manifest import open_dataset


@pytest.mark.parametrize("place", ["build/data", "/a/b", "C:/odd", "data:v2/x", "s3", Path("build/data")])
def test_paths_stay_paths(place: str | Path) -> None:
    assert parse_location(place) == Path(place)


@pytest.mark.parametrize(
    ("place", "url"),
    [
        ("s3://bucket/faces/", "s3://bucket/faces"),
        ("HTTPS://host:8080/a/b", "https://host:8080/a/b"),
        (Path("s3://bucket/faces"), "s3://bucket/faces"),  # pathlib makes it s3:/bucket/faces
        ("gs://bucket/x", "gs://bucket/x"),
        ("memory://x", "memory://x"),
    ],
)
def test_urls_of_allowed_schemes_are_remote(place: str | Path, url: str) -> None:
    assert parse_location(place) == RemotePath(url)


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("pipe:cat /etc/passwd", "pipe: is not opened; expected a folder or a URL of http, https, s3"),
        ("pipe://cat", "pipe: is not opened"),
        ("PIPE:cat", "pipe: is not opened"),
        ("file:///etc", "file: is not opened.*write the path itself"),
        ("local:///etc", "write the path itself"),
        ("ftp://host/x", "ftp: is not opened"),
        ("github://a:b@/x", "github: is not opened"),
        ("simplecache::s3://bucket/x", "simplecache: is not opened"),
        ("s3::http://host/x", "s3: is not opened"),
        ("zip://x::http://host/y", "zip: is not opened"),
        ("https://me:secret@host/x", "a password in a URL"),
        ("https://host/x?token=secret", "no query"),
        ("https://host/x#part", "no query"),
        ("https://host/a b", "no query, fragment or blank"),
        ("https://", "not the URL of a folder"),
        ("https://host/a/../b", "leaves its own folder"),
        ("https://host/a/%2e%2e/b", "leaves its own folder"),
    ],
)
def test_other_urls_are_refused_by_name(place: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as raised:
        open_dataset(place)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("name", ["..", "a/../b", "", "/a", "a b", "a?b", "a%2e", "x\n", "http://else", "a\\b"])
def test_names_of_a_foreign_description_stay_below_their_root(name: str) -> None:
    with pytest.raises(UserError, match="names a file"):
        RemotePath("https://host/data") / name


def test_remote_paths_are_put_together_as_paths_are() -> None:
    place = RemotePath("https://host/data") / "train/train-000000.tar"
    local = Path("/data/train/train-000000.tar")
    assert (place.name, place.stem, place.parent.name) == (local.name, local.stem, local.parent.name)
    assert str(place) == "https://host/data/train/train-000000.tar"


def test_a_scheme_without_its_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UserError, match=r"gs://: cannot be opened .*; pip install gcsfs"):
        open_dataset("gs://bucket/data")


def test_a_configuration_keeps_the_url() -> None:
    config = validate_config(
        {
            "output": "run",
            "training": {"epochs": 1, "global_batch": 4, "local_batch": 4},
            "data": {"path": "s3://bucket/faces", "cache": {"path": "c", "max_bytes": "2GiB"}},
        }
    )
    dumped = config.model_dump(mode="json")
    assert dumped["data"]["path"] == "s3://bucket/faces"
    assert dumped["data"]["cache"]["max_bytes"] == 2 << 30
    assert validate_config(dumped) == config


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("pipe:cat x", "pipe: is not opened"),
        ("https://me:secret@host/x", "a password in a URL"),
        (7, "a path or"),
    ],
)
def test_a_configuration_refuses_in_one_line(place: object, words: str) -> None:
    tree = {"output": "run", "training": {"epochs": 1, "global_batch": 4, "local_batch": 4}, "data": {"path": place}}
    with pytest.raises(UserError, match=words) as raised:
        validate_config(tree)
    assert "secret" not in str(raised.value)
    assert "\n" not in str(raised.value)
