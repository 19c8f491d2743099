"""Versions of one picture are told from pictures that are only alike, and crops that cannot be read are counted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from preprocess.align import align
from preprocess.clean import find
from preprocess.clean.pixels import MIN_CORRELATION, Crops, SamePicture, comparable, detail_correlation
from preprocess.cli import app
from preprocess.photo import encode_jpeg
from preprocess.synthetic import render_photo
from tests.datasets import make_dataset

Pixels = npt.NDArray[np.uint8]
VERSIONS: dict[str, Callable[[Pixels], Pixels]] = {
    "compressed": lambda image: decode(encode_jpeg(image, 40)),
    "resized": lambda image: np.asarray(cv2.resize(image, None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA)),
    "brighter": lambda image: np.asarray(cv2.convertScaleAbs(image, alpha=1.2, beta=10)),
    "all": lambda image: VERSIONS["compressed"](VERSIONS["brighter"](VERSIONS["resized"](image))),
}


def decode(content: bytes) -> Pixels:
    return np.asarray(cv2.cvtColor(cv2.imdecode(np.frombuffer(content, np.uint8), 1), cv2.COLOR_BGR2RGB))


def crop(image: Pixels, landmarks: npt.NDArray[np.floating], side: int = 64) -> npt.NDArray[np.float32]:
    return comparable(np.asarray(cv2.cvtColor(align(image, landmarks, side), cv2.COLOR_RGB2GRAY)))


@pytest.fixture(scope="module")
def faces() -> list[list[tuple[Pixels, npt.NDArray[np.floating]]]]:
    """Three photos of each of five people, with landmarks."""
    photos = [[render_photo(3, person, number) for number in range(3)] for person in range(5)]
    return [[(photo.image, photo.landmarks) for photo in of_person] for of_person in photos]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("side", [64, 112])
def test_versions_of_a_picture_are_the_same(
    faces: list[list[tuple[Pixels, npt.NDArray[np.floating]]]], version: str, side: int
) -> None:
    rng = np.random.default_rng(0)
    for image, landmarks in (photo for of_person in faces for photo in of_person):
        changed = VERSIONS[version](image)
        # a detector finds the points elsewhere by a hundredth of the face
        moved = landmarks + rng.normal(0, 0.01 * np.ptp(landmarks[:, 0]), (5, 2))
        found = detail_correlation(crop(image, landmarks, side), crop(changed, moved * len(changed) / len(image), side))
        assert found >= MIN_CORRELATION


def test_other_photos_of_a_person_and_other_people_are_not(
    faces: list[list[tuple[Pixels, npt.NDArray[np.floating]]]],
) -> None:
    crops = [crop(*photo) for of_person in faces for photo in of_person]
    pairs = [(one, other) for one in range(len(crops)) for other in range(one)]
    assert max(detail_correlation(crops[one], crops[other]) for one, other in pairs) < MIN_CORRELATION


def test_pictures_without_detail_are_not_the_same() -> None:
    flat = np.full((64, 64), 7, np.float32)
    assert detail_correlation(flat, flat) == 0.0


@pytest.fixture
def damaged(tmp_path: Path) -> tuple[Path, pa.Table]:
    """A data set whose first photo's bytes were overwritten."""
    data = make_dataset(tmp_path, num_samples=12, num_identities=3, crop_px=48)
    photos = find.read_photos(data)
    with open(data / "train" / "train-000000.tar", "r+b") as tar:
        tar.seek(photos["jpg_offset"][0].as_py() + 300)
        tar.write(b"\0" * 40)
    return data, photos


def test_crops_that_cannot_be_read_are_counted(damaged: tuple[Path, pa.Table]) -> None:
    data, photos = damaged
    crops = Crops(data, photos)
    is_same = SamePicture(crops, crops)
    assert is_same(3, 3)
    assert is_same.num_unreadable == 0
    assert not is_same(0, 0)
    assert not is_same(2, 0)
    assert is_same.num_unreadable == 2


def test_commands_say_how_many_crops_cannot_be_read(damaged: tuple[Path, pa.Table], tmp_path: Path) -> None:
    data, photos = damaged
    vectors = np.random.default_rng(0).normal(size=(12, 8)).astype(np.float32)
    embeddings = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 8)
    pa.parquet.write_table(pa.table({"key": photos["key"], "embedding": embeddings}), tmp_path / "embeddings.parquet")

    def run(*arguments: object) -> str:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return " ".join(result.output.split())

    for path in sorted((tmp_path / "photos").glob("*/0*.jpg")):  # the same pictures as other files
        again = tmp_path / "again" / path.relative_to(tmp_path / "photos")
        again.parent.mkdir(parents=True, exist_ok=True)
        again.write_bytes(encode_jpeg(decode(path.read_bytes()), 90))
    run("shard", tmp_path / "again", tmp_path / "test", "--already-aligned", "--size", 48)
    inputs = ("--against", tmp_path / "test", "--embeddings", tmp_path / "embeddings.parquet")
    text = run("clean", data, tmp_path / "report", *inputs)
    assert "pairs of near hashes of which a crop cannot be read: 1 (preprocess verify names it)" in text
    reasons = pa.parquet.read_table(tmp_path / "report" / "verdicts.parquet")["reason"].to_pylist()
    assert reasons.count(find.NEAR_TEST_SET) == 11
    assert "1 of the crops below cannot be read" in (tmp_path / "report" / "doubtful.html").read_text()
    assert "left out, as they cannot be read: 1" in run(
        *("preview", data, "--out", tmp_path / "sheet.png", "--rows", 12, "--columns", 1),
        *("--config", write_recipe(tmp_path)),
    )
    run("stats", data, "--html", tmp_path / "stats.html")
    page = (tmp_path / "stats.html").read_text()
    assert "1 more cannot be read" in page
    assert "of 11 crops, 1 more cannot be read" in page


def write_recipe(folder: Path) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(
        "output: run\ndata: {path: elsewhere, augment: [{kind: flip}]}\n"
        "training: {epochs: 1, global_batch: 16, local_batch: 8}\n"
    )
    return path
