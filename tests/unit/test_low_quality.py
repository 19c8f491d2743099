"""Photos with several faces and photos that are blurred: pages with thumbnails, and what withdrawing leaves of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from pipeline.data.manifest import open_dataset
from preprocess.crops import CropMaker, CropOptions, describe_detector
from preprocess.dataset import finish_dataset
from preprocess.detect import Face
from preprocess.ledger import ledger_path, remove_from_ledger, several_faces_path
from preprocess.plan import ShardOptions, build_plan, save_plan
from preprocess.shard import process_shard
from preprocess.sources import read_source
from preprocess.verify import find_faults
from tests.datasets import random_image

LANDMARKS = np.array([[38, 50], [74, 50], [56, 72], [42, 92], [70, 92]], np.float32)


class Planted:
    """Finds as many faces as the first pixel says; the last of several is too small to count."""

    weights_sha256 = ""
    max_side_px = 1024
    batch_size = 1

    def detect(self, images: Sequence[npt.NDArray[np.uint8]]) -> list[list[Face]]:
        return [self._faces(round(float(image[:8, :8].mean()) / 40)) for image in images]

    def _faces(self, count: int) -> list[Face]:
        sides = [100.0 - number for number in range(count)] + ([5.0] if count > 1 else [])
        return [Face(np.array([5, 5, 5 + side, 5 + side], np.float32), LANDMARKS, 0.9) for side in sides]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(2)
    folder = tmp_path / "photos" / "ann"
    folder.mkdir(parents=True)
    for name, faces in (("none", 0), ("one", 1), ("two", 2), ("three", 3), ("blurred", 1)):
        image = rng.integers(0, 255, (112, 112, 3), dtype=np.uint8)
        if name == "blurred":
            image = cv2.GaussianBlur(random_image(rng, 112), (0, 0), 9)
        image[:8, :8] = 40 * faces
        cv2.imwrite(str(folder / f"{name}.png"), image)
    return folder.parent


def make(photos: Path, out: Path, min_sharpness: float) -> Path:
    options = ShardOptions(crop=CropOptions(detector="none", min_sharpness=min_sharpness))
    store, listing, _ = read_source(photos)
    plan = build_plan(listing, options)
    out.mkdir()
    save_plan(plan, out)
    maker = CropMaker(options.crop, None)
    maker.detector = Planted()
    for number in range(plan.num_shards):
        process_shard(plan, number, store, out, maker)
    finish_dataset(plan, out)
    assert find_faults(out, lambda count: None) == []
    return out


def test_several_faces_have_a_page_and_blurred_photos_are_rejects(photos: Path, tmp_path: Path) -> None:
    out = make(photos, tmp_path / "out", min_sharpness=5000.0)  # edges of the planted corner are sharp
    info = open_dataset(out).info
    assert info.reject_counts == {"blurred": 1, "no_face": 1}
    (shard,) = info.splits["train"].shards
    rejects = ledger_path(out, shard).read_text()
    assert re.search(r"<img[^>]+base64[^>]+></td><td>blurred</td>.*ann/blurred.png", rejects)
    page = several_faces_path(out, shard).read_text()
    assert "<h1>2 photos with several faces of train-000000" in page
    for count, name in ((2, "two"), (3, "three")):
        assert re.search(rf"<img[^>]+base64[^>]+></td><td>{count} faces</td>.*ann/{name}.png", page)
    assert "one.png" not in page
    key = re.search(r"<td>3 faces</td><td>(\w+)</td>", page)
    assert key is not None
    assert remove_from_ledger(out, shard, {key[1]}) == 1
    page = several_faces_path(out, shard).read_text()
    assert "<h1>1 photos with several faces" in page
    assert "three.png" not in page
    assert "two.png" in page


def test_without_a_limit_nothing_is_blurred(photos: Path, tmp_path: Path) -> None:
    assert open_dataset(make(photos, tmp_path / "out", min_sharpness=0.0)).info.reject_counts == {"no_face": 1}


def test_the_limit_is_recorded_only_where_it_is_set() -> None:
    assert "min_sharpness" not in CropOptions().model_dump()
    assert describe_detector(CropOptions(detector="none"), "").options == {}
    assert describe_detector(CropOptions(min_sharpness=7.0), "").options["min_sharpness"] == 7.0
    assert describe_detector(CropOptions(detector="none", min_sharpness=7.0), "").options == {"min_sharpness": 7.0}
