"""Photo sources and embedding extraction, with a tiny network in the place of a trained one."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from pipeline.config.errors import UserError
from pipeline.data.dataset_format import STATUS_KEPT, shard_paths
from pipeline.data.manifest import open_dataset
from pipeline.evaluate.embed import Embedder, extract_embeddings
from pipeline.evaluate.pairs import PairList, Photo, parse_pairs
from pipeline.evaluate.photos import (
    Crop,
    DatasetPhotos,
    FolderPhotos,
    ListedPhoto,
    Rejected,
    contradicts_names,
    number_photos,
)
from pipeline.evaluate.run import ScoredPairs, coverage_notes, score_embeddings
from tests.datasets import make_dataset

CROP_PX = 16
NAMES = [f"person{number:03d}" for number in range(4)]


class Tiny(nn.Module):
    """A fixed linear map of pixels that tells left from right."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = torch.from_numpy(np.random.default_rng(0).normal(size=(3 * CROP_PX * CROP_PX, 8))).float()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert images.dtype == torch.uint8
        return (images.float() / 127.5 - 1).flatten(1) @ self.weights


class Memory:
    """A photo source of random crops; `rejected` maps photos to reasons."""

    def __init__(self, rejected: dict[Photo, str] | None = None, size_px: int = CROP_PX) -> None:
        self.rejected, self.size_px = rejected or {}, size_px

    def load(self, photo: Photo) -> Crop | Rejected:
        if photo in self.rejected:
            return Rejected(self.rejected[photo])
        seed = [photo.number, *photo.identity.encode()]
        return np.random.default_rng(seed).integers(0, 256, (self.size_px, self.size_px, 3), dtype=np.uint8)


def embedder(module: nn.Module | None = None) -> Embedder:
    return Embedder((module or Tiny()).eval(), CROP_PX, torch.device("cpu"), "run")


@pytest.mark.parametrize("flip", [True, False])
def test_embeddings_equal_the_formula_whatever_the_batch(flip: bool) -> None:
    photos = [Photo("a", number) for number in range(1, 8)]
    source, model = Memory(), Tiny()
    counts: list[int] = []
    found = extract_embeddings(embedder(model), source, photos, batch=3, flip=flip, advance=counts.append)
    assert counts == [3, 3, 1]
    assert found.photos == photos
    for photo, vector in zip(photos, found.vectors, strict=True):
        crop = source.load(photo)
        assert not isinstance(crop, Rejected)
        sides = [crop, crop[:, ::-1].copy()] if flip else [crop]
        expected = sum(model(torch.from_numpy(side).permute(2, 0, 1)[None])[0].double().numpy() for side in sides)
        np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), atol=1e-6)


def score_pairs(source: Memory, pairs: PairList) -> ScoredPairs:
    photos = pairs.photos()
    return score_embeddings(extract_embeddings(embedder(), source, photos, batch=2), pairs, len(photos))


def test_missing_photos_are_listed_and_their_pairs_dropped() -> None:
    pairs = parse_pairs("2\t1\nA\t1\t2\nA\t1\tB\t1\nB\t1\t2\nB\t2\tA\t2\n", "p")
    scored = score_pairs(Memory({Photo("A", 2): "no_face"}), pairs)
    assert scored.missing == {Photo("A", 2): "no_face"}
    assert [(str(pair.left), str(pair.right)) for pair in scored.pairs] == [("A_0001", "B_0001"), ("B_0001", "B_0002")]
    assert (scored.num_dropped, scored.num_photos) == (2, 3)
    assert scored.fold.tolist() == [0, 1]
    assert "2 of 4 pairs were dropped because 1 photos are missing (no_face: 1)" in coverage_notes(scored, pairs)[0]


def test_no_pair_left_is_an_error() -> None:
    pairs = parse_pairs("1\t1\nA\t1\t2\nA\t1\tB\t1\n", "p")
    with pytest.raises(UserError, match=r"none of 2 pairs has both photos; 1 of 3 photos are missing.*A_0001 \(gone\)"):
        score_pairs(Memory({Photo("A", 1): "gone"}), pairs)


def test_photos_beyond_the_pairs_change_nothing() -> None:
    pairs = parse_pairs("1\t1\nA\t1\t2\nA\t1\tB\t1\n", "p")
    source = Memory({Photo("C", 1): "gone"})
    more = extract_embeddings(embedder(), source, [Photo("C", 1), Photo("C", 2), *pairs.photos()], batch=2)
    scored = score_embeddings(more, pairs, len(pairs.photos()))
    assert scored.distances.tolist() == score_pairs(source, pairs).distances.tolist()
    assert (scored.missing, scored.num_photos) == ({}, 4)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_unusable_embeddings_are_an_error(value: float) -> None:
    class Broken(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            vectors = torch.ones(len(images), 4)
            vectors[1] = value
            return vectors

    photos = [Photo("a", number) for number in range(1, 4)]
    with pytest.raises(UserError, match="run: 1 of 3 embeddings are not finite or zero, first that of a_0002"):
        extract_embeddings(embedder(Broken()), Memory(), photos, batch=8)


def test_crops_of_another_size_are_an_error() -> None:
    with pytest.raises(UserError, match="a crop of 24x24 px; expected 16x16 px as run was trained on"):
        extract_embeddings(embedder(), Memory(size_px=24), [Photo("a", 1)], batch=1)


@pytest.mark.parametrize(
    ("identity", "numbered"),
    [
        ("Ann_Lee", {3: "d/Ann_Lee_0003.jpg", 12: "d/Ann_Lee_0012.png"}),
        ("Ann", {10000: "Ann/Ann_10000.jpg"}),
        ("Ann", {1: "Ann/a.jpg", 2: "Ann/b.jpg"}),
        # One photo with another name: all are counted, none is lost.
        ("Ann", {1: "Ann/Ann_0007.jpg", 2: "Ann/holiday.jpg"}),
        # The same official name twice, in two folders or as two files.
        ("Ann", {1: "Ann/2019/Ann_0007.jpg", 2: "Ann/2020/Ann_0007.jpg"}),
        ("Ann", {1: "Ann/Ann_0007.jpg", 2: "Ann/Ann_0007.png"}),
        # Names that only look official: pair lists count from 1, and `%04d` pads to four digits.
        ("Ann", {1: "Ann/Ann_0000.jpg"}),
        ("Ann", {1: "Ann/Ann_00007.jpg"}),
        ("Ann", {1: "Ann/Bo_0007.jpg"}),
        ("Ann", {1: "Ann/Ann_٠٠٠٧.jpg"}),
    ],
)
def test_photos_are_numbered_by_name_or_else_by_order(identity: str, numbered: dict[int, str]) -> None:
    assert number_photos(identity, reversed(numbered.values())) == numbered


def test_numbers_that_contradict_names_are_noticed() -> None:
    assert not contradicts_names("Ann", {3: "Ann/Ann_0003.jpg", 12: "Ann/Ann_0012.jpg"})
    assert not contradicts_names("Ann", {1: "Ann/Ann_0001.jpg", 2: "Ann/x.jpg"})
    assert contradicts_names("Ann", {1: "Ann/Ann_0007.jpg", 2: "Ann/x.jpg"})


def test_dataset_crops_come_from_the_shards(tmp_path: Path) -> None:
    dataset = open_dataset(
        make_dataset(tmp_path / "data", num_samples=24, num_identities=4, crop_px=CROP_PX, samples_per_shard=10)
    )
    photos = DatasetPhotos(dataset, ["train"])
    # Rejects have numbers, too, and give their reason; they are not offered for drawing.
    rows = pa.concat_tables(pq.read_table(path) for path in (dataset.root / "manifest").glob("*.parquet")).to_pylist()
    kept = {name: number_photos(name, [row["source"] for row in rows if row["identity"] == name]) for name in NAMES}
    status = {row["source"]: row["status"] for row in rows}
    for name, sources in kept.items():
        assert photos.numbers()[name] == [n for n, source in sources.items() if status[source] == STATUS_KEPT]
    reasons = [
        photos.load(Photo(n, k)) for n, s in kept.items() for k, path in s.items() if status[path] != STATUS_KEPT
    ]
    assert reasons
    assert set(reasons) == {Rejected(row["reject_reason"]) for row in rows if row["status"] != STATUS_KEPT}
    assert photos.load(Photo("nobody", 1)) == Rejected("not in the data set")
    # The same pixels as the tar's bytes, read by hand.
    row = next(row for row in rows if row["source"] == kept["person002"][2])
    tar = shard_paths(dataset.root, "train", row["shard"])["tar"].read_bytes()
    content = tar[row["jpg_offset"] : row["jpg_offset"] + row["jpg_size"]]
    crop = photos.load(Photo("person002", 2))
    assert not isinstance(crop, Rejected)
    expected = cv2.cvtColor(cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    np.testing.assert_allclose(crop.astype(int), expected.astype(int), atol=3)  # another JPEG decoder


def test_a_damaged_photo_is_counted_with_its_reason(tmp_path: Path) -> None:
    dataset = open_dataset(make_dataset(tmp_path / "data", num_samples=4, num_identities=4, crop_px=CROP_PX))
    tar = shard_paths(dataset.root, "train", "train-000000")["tar"]
    content = bytearray(tar.read_bytes())
    content[int(dataset.split("train").jpg_offset[1]) + 30] ^= 1
    tar.write_bytes(content)
    loaded = DatasetPhotos(dataset, ["train"]).load(Photo("person001", 1))
    assert isinstance(loaded, Rejected)
    assert loaded.reason.startswith("crc_mismatch in train/train-000000.tar")


def test_folder_of_unaligned_photos(tmp_path: Path) -> None:
    listing = [
        ListedPhoto("Ann", "Ann/Ann_0001.jpg", ""),
        ListedPhoto("Ann", "Ann/Ann_0002.PNG", ""),
        ListedPhoto("Ann", "Ann/Ann_0003.jpg", "bad_name"),
        ListedPhoto("Bo", "Bo/2019/x.jpg", ""),
    ]
    pixels = np.zeros((CROP_PX, CROP_PX, 3), np.uint8)
    cropped: list[Path] = []

    def crop(path: Path) -> Crop | Rejected:
        cropped.append(path.relative_to(tmp_path))
        return pixels if path.stem == "Ann_0001" else Rejected("no_face")

    photos = FolderPhotos(tmp_path, listing, crop)
    assert photos.numbers() == {"Ann": [1, 2], "Bo": [1]}
    assert photos.load(Photo("Ann", 1)) is pixels
    assert photos.load(Photo("Ann", 2)) == Rejected("no_face")
    assert photos.load(Photo("Ann", 3)) == Rejected("bad_name")
    assert photos.load(Photo("Ann", 4)) == Rejected("no such file")
    assert photos.load(Photo("Bo", 1)) == Rejected("no_face")
    assert cropped == [Path("Ann/Ann_0001.jpg"), Path("Ann/Ann_0002.PNG"), Path("Bo/2019/x.jpg")]
