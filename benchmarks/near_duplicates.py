"""How well near duplicates are told from photos that are only alike: by the perceptual hash, and by the pixels.

True pairs are made: a photo is compressed, shrunk, brightened or trimmed, and goes through the detector and the aligner
again, as it would if both had been sharded. False pairs are those of two people whose hashes are near.

    python benchmarks/near_duplicates.py PHOTOS DATA --count 400

PHOTOS is the folder that DATA was made from.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.data.manifest import open_dataset
from preprocess.clean.find import read_photos
from preprocess.clean.near import near_pairs
from preprocess.clean.pixels import MIN_CORRELATION, Crops, comparable, detail_correlation
from preprocess.crops import CropMaker
from preprocess.measure import phash
from preprocess.photo import decode_photo, encode_jpeg, read_file

Pixels = npt.NDArray[np.uint8]


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path, help="of DATA's detector, where it needs them")
    parser.add_argument("--count", type=int, default=400, help="photos of which versions are made")
    parser.add_argument("--bits", type=int, default=10, help="of false pairs, at most")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    true_pairs(arguments.photos, arguments.data, arguments.weights, arguments.count)
    false_pairs(arguments.data, arguments.bits)


def true_pairs(root: Path, data: Path, weights: Path | None, count: int) -> None:
    """Versions of photos, sharded again."""
    photos = read_photos(data)
    crops, maker = Crops(data, photos), CropMaker.from_dataset(open_dataset(data).info, weights)
    chosen = np.random.default_rng(0).choice(len(photos), min(count, len(photos)), replace=False)
    found: dict[str, list[tuple[int, float]]] = {name: [] for name in VERSIONS}
    for place in chosen.tolist():
        original = decode_photo(read_file(root / photos["source"][place].as_py()))
        for name, change in VERSIONS.items():
            crop = maker.make(lambda change=change, original=original: encode_jpeg(change(original), 90)).crop
            stored = crops.at(place)
            if crop is None or stored is None:
                continue
            bits = (phash(crop) ^ photos["phash"][place].as_py()).bit_count()
            grey = np.asarray(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY), np.uint8)
            found[name].append((bits, detail_correlation(comparable(grey), stored)))
    for name, pairs in found.items():
        bits, correlation = np.array([pair[0] for pair in pairs]), np.array([pair[1] for pair in pairs])
        near = " ".join(f"{np.mean(bits <= limit):.0%} within {limit} bits," for limit in (2, 4, 8))
        correlation = correlation[bits <= 8]
        same = np.mean(correlation >= MIN_CORRELATION)
        print(
            f"{name}, {len(pairs)} pairs: {near} {same:.1%} of these the same by pixels "
            f"(median {np.median(correlation):.2f}, lowest hundredth {np.quantile(correlation, 0.01):.2f})"
        )


def false_pairs(data: Path, max_bits: int) -> None:
    """Crops of two people whose hashes are near."""
    photos = read_photos(data)
    crops, people = Crops(data, photos), photos["identity"].to_pylist()
    hashes, first = np.unique(photos["phash"].to_numpy(), return_index=True)
    pairs = [
        (int(first[i]), int(first[j]), int(bits)) for i, j, bits in zip(*near_pairs(hashes, max_bits), strict=True)
    ]
    pairs = [pair for pair in pairs if people[pair[0]] != people[pair[1]]]
    started = time.perf_counter()
    correlation = np.array([detail_correlation(crops.at(i), crops.at(j)) for i, j, _ in pairs])
    seconds = time.perf_counter() - started
    for limit in sorted({4, 8, max_bits}):
        near = correlation[[bits <= limit for _, _, bits in pairs]]
        if len(near):
            same = int((near >= MIN_CORRELATION).sum())
            said = f"{len(near):,} pairs, {same} the same by pixels, highest {near.max():.2f}"
            print(f"two people within {limit} bits: {said}")
    print(f"{seconds / max(1, len(pairs)) * 1000:.1f} ms a pair")


def _resize(image: Pixels) -> Pixels:
    return np.asarray(cv2.resize(image, None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA), np.uint8)


def _brighten(image: Pixels) -> Pixels:
    return np.asarray(cv2.convertScaleAbs(image, alpha=1.25, beta=15), np.uint8)


def _compress(image: Pixels) -> Pixels:
    return decode_photo(encode_jpeg(image, 40))


def _trim(image: Pixels) -> Pixels:
    edge = len(image) // 25
    return image[edge : -edge // 2, edge:-edge]


VERSIONS: dict[str, Callable[[Pixels], Pixels]] = {
    "compressed (quality 40)": _compress,
    "resized (0.6)": _resize,
    "brightened (1.25 x + 15)": _brighten,
    "trimmed by 4 %": _trim,
    "resized, brightened and compressed": lambda image: _compress(_brighten(_resize(image))),
}


if __name__ == "__main__":
    main()
