"""Detectors that want several photos at once: the shards' bytes are those of one photo at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from preprocess import crops
from preprocess.crops import CropMaker, CropOptions, PhotoRequest
from preprocess.dataset import finish_dataset
from preprocess.detect import Face, load_detector
from preprocess.plan import Plan, ShardOptions, build_plan, save_plan
from preprocess.shard import process_shard
from preprocess.sources import read_source
from preprocess.sources.store import PhotoStore
from tests.datasets import random_image
from tests.scrfd_models import write_model

Pixels = npt.NDArray[np.uint8]
OPTIONS = ShardOptions(
    crop=CropOptions(detector="scrfd", size_px=32, min_score=0.5, min_face_px=1), samples_per_shard=40
)


class Watched:
    """A detector that notes how many images it is given, and takes `batch_size` of them."""

    def __init__(self, weights: Path, batch_size: int) -> None:
        self._inner = load_detector("scrfd", weights, 1)
        self.weights_sha256, self.max_side_px = self._inner.weights_sha256, self._inner.max_side_px
        self.batch_size = self._inner.batch_size = batch_size
        self.calls: list[list[Pixels]] = []

    def detect(self, images: Sequence[Pixels]) -> list[list[Face]]:
        self.calls.append(list(images))
        return self._inner.detect(images)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "m.onnx", side=64, has_batch=True)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 photos of several sizes: good ones, broken ones, a missing one, and some with landmarks from the list."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(2)
    lines = ["path,identity,landmarks"]
    for number in range(100):
        path = root / f"{number}.png"
        size = [(64, 64), (90, 40), (30, 70)][number % 3]
        cv2.imwrite(str(path), cv2.resize(random_image(rng, 64), size))
        if number % 13 == 5:
            path.write_bytes(path.read_bytes()[:200])
        given = "20 22 44 22 32 34 24 46 42 46" if number % 9 == 3 else ""
        lines.append(f"{path.name},person {number % 4},{given}")
    (root / "7.png").unlink()
    (root / "photos.csv").write_text("\n".join(lines) + "\n")
    return root / "photos.csv"


def make(plan: Plan, photos: PhotoStore, out: Path, weights: Path, batch_size: int) -> Watched:
    out.mkdir()
    save_plan(plan, out)
    maker = CropMaker(OPTIONS.crop, weights)
    maker.detector = watched = Watched(weights, batch_size)
    for number in range(plan.num_shards):
        before = len(watched.calls)
        process_shard(plan, number, photos, out, maker)
        # each shard is finished, detection and all, before the next begins
        assert len(watched.calls) > before
    finish_dataset(plan, out)
    return watched


def tree(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def test_shards_have_the_same_bytes_whatever_the_batch(source: Path, weights: Path, tmp_path: Path) -> None:
    photos, listing, _ = read_source(source)
    plan = build_plan(listing, OPTIONS)
    made = {size: make(plan, photos, tmp_path / str(size), weights, size) for size in (1, 5, 16)}
    alone = tree(tmp_path / "1")
    assert tree(tmp_path / "5") == alone == tree(tmp_path / "16")
    tables = [pa.parquet.read_table(path) for path in sorted((tmp_path / "1" / "manifest").iterdir())]
    reasons = pa.concat_tables(tables)["reject_reason"].to_pylist()
    assert reasons.count("") > 50
    assert {"truncated", "unreadable"} <= set(reasons)
    assert {len(call) for call in made[1].calls} == {1}
    for size in (5, 16):
        assert max(len(call) for call in made[size].calls) > 1
        assert all(len(call) <= size for call in made[size].calls)
        flat = [image for call in made[size].calls for image in call]
        assert all(
            np.array_equal(image, call[0]) for image, call in zip(flat, made[1].calls, strict=True)
        )  # each photo once, in order


def test_large_photos_are_not_held_together(source: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crops, "_MAX_BATCH_BYTES", 3 * 64 * 64 * 2)
    maker = CropMaker(OPTIONS.crop, weights)
    maker.detector = watched = Watched(weights, 16)
    requests = [PhotoRequest(source.with_name(f"{number}.png")) for number in range(0, 30, 3)]
    opened = 0

    def counted(request: PhotoRequest) -> Callable[[], bytes]:
        def read() -> bytes:
            nonlocal opened
            opened += 1
            return Path(request.photo).read_bytes()  # type: ignore[arg-type]

        return read

    results = maker.make_all(PhotoRequest(counted(request)) for request in requests)
    for number, result in enumerate(results, 1):
        assert result.source_sha256
        assert opened <= number + 2
    assert opened == len(requests)
    assert {len(call) for call in watched.calls} == {1, 2}


def test_only_detectors_that_gain_want_several(weights: Path) -> None:
    assert load_detector("mtcnn", None, 20).batch_size == 1
    assert load_detector("scrfd", weights, 20).batch_size == 1  # on a CPU
