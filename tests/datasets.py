"""Tiny data sets of random crops, made by `preprocess`'s own functions in this process."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from preprocess.crops import CropMaker, CropOptions
from preprocess.dataset import finish_dataset
from preprocess.plan import ShardOptions, build_plan, save_plan
from preprocess.shard import process_shard
from preprocess.sources import read_source


def make_dataset(
    root: Path,
    *,
    num_samples: int,
    num_identities: int,
    crop_px: int,
    samples_per_shard: int = 64,
    seed: int = 0,
    names: Sequence[str] | None = None,
) -> Path:
    """Write a data set with one split, `train`, at `root / "data"` and return that path; photos stand beside it.

    Crops of an identity share their large shapes, so that a model can learn them. One more photo is a text file: each
    data set has a reject. Identities are called `names`, or person000, person001, ….
    """
    names = names or [f"person{number:03d}" for number in range(num_identities)]
    rng = np.random.default_rng(seed)
    faces = [random_image(rng, crop_px) for _ in range(num_identities)]
    photos = root / "photos"
    for number in range(num_samples):
        folder = photos / names[number % num_identities]
        folder.mkdir(parents=True, exist_ok=True)
        image = cv2.addWeighted(faces[number % num_identities], 0.7, random_image(rng, crop_px), 0.3, 0)
        (folder / f"{number:05d}.jpg").write_bytes(encode_jpeg(image))
    (photos / names[0] / "notes.jpg").write_text("not a photo")
    options = ShardOptions(
        crop=CropOptions(detector="none", size_px=crop_px), samples_per_shard=samples_per_shard, seed=seed
    )
    store, listing, _ = read_source(photos)
    plan = build_plan(listing, options)
    data = root / "data"
    data.mkdir()
    save_plan(plan, data)
    maker = CropMaker(options.crop, None)
    for number in range(plan.num_shards):
        process_shard(plan, number, store, data, maker)
    finish_dataset(plan, data)
    return data


def rotten_copy(data: Path, target: Path) -> Path:
    """Copy a data set and flip a bit in every hundred bytes of one of its shards; gives the copy's path."""
    shutil.copytree(data, target)
    shard = next((target / "train").glob("*.tar"))
    content = bytearray(shard.read_bytes())
    for offset in range(0, len(content), 97):
        content[offset] ^= 0x10
    shard.write_bytes(bytes(content))
    return target


def random_image(rng: np.random.Generator, side_px: int) -> npt.NDArray[np.uint8]:
    """Smooth colour blobs: [H, W, 3] uint8, the kind of content JPEG keeps well."""
    coarse = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return cv2.resize(coarse, (side_px, side_px), interpolation=cv2.INTER_CUBIC)


def encode_jpeg(image: npt.NDArray[np.uint8]) -> bytes:
    """Encode at quality 95."""
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
