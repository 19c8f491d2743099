"""What sharding costs beside decoding photos and finding faces in them, in one process of one thread.

    python benchmarks/sharding.py PHOTOS
    python benchmarks/sharding.py PHOTOS --detector yunet --weights yunet.onnx

Bare: read, decode and detect. Ours: the same, then choose, align, crop, encode, hash, measure, write the tar, index and
manifest, and read the tar back. They take turns over the same photos. Where ours spends its time is printed by stage.

Then the photos go through as many processes as there are cores, from the first slice that is done to the last: beside
that many times what one process makes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path

import cv2
import pyarrow as pa
from figures import Figure, write

from preprocess.crops import CropMaker, CropOptions
from preprocess.drivers.local import run_local
from preprocess.photo import Reject, read_photo
from preprocess.plan import Plan, ShardOptions, build_plan, save_plan
from preprocess.shard import process_shard
from preprocess.sources import read_source
from preprocess.sources.store import PhotoStore, Place


def main() -> None:
    """Take turns and print the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="folder of identity folders")
    parser.add_argument("--detector", default="mtcnn")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--count", type=int, default=300, help="photos of a turn")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    pa.set_cpu_count(1)
    photos, listing, _ = read_source(arguments.photos)
    options = ShardOptions(crop=CropOptions(detector=arguments.detector), samples_per_shard=arguments.count)
    plan = build_plan(listing.slice(0, arguments.count), options)
    maker = CropMaker(options.crop, arguments.weights)
    bare(plan, photos, maker)  # networks and files are loaded once
    num_photos = len(plan.rows)
    rates: dict[str, list[float]] = {"bare": [], "ours": []}
    for _ in range(arguments.repeats):
        rates["bare"].append(num_photos / bare(plan, photos, maker))
        rates["ours"].append(num_photos / ours(plan, photos, maker))
    spent = maker.times.seconds()
    rest = num_photos * sum(1 / rate for rate in rates["ours"]) - sum(spent.values())
    stages = ", ".join(
        f"{name} {1000 * seconds / num_photos / arguments.repeats:.2f}"
        for name, seconds in {**spent, "shards": rest}.items()
    )
    print(f"ms a photo by stage: {stages}")
    figures = [
        Figure(
            f"sharding, {arguments.detector}",
            "photos/s",
            rates["ours"],
            limit=("decoding and detection alone", rates["bare"]),
            goal="87 % of the limit (15 % more time)" if arguments.detector == "mtcnn" else "",
        )
    ]
    num_workers = len(os.sched_getaffinity(0))
    if num_workers > 1:
        together = [pool_rate(plan, photos, arguments.weights, num_workers) for _ in range(arguments.repeats)]
        limit = f"{num_workers} times one process", [num_workers * rate for rate in rates["ours"]]
        figures.append(
            Figure(f"sharding, {arguments.detector}, {num_workers} processes", "photos/s", together, limit=limit)
        )
    print("\n".join(figure.text() for figure in figures))
    if arguments.json:
        write(arguments.json, figures)


def bare(plan: Plan, photos: PhotoStore, maker: CropMaker) -> float:
    """Seconds to read, decode and detect."""
    assert maker.detector is not None
    started = time.perf_counter()
    for source in plan.rows["source"].to_pylist():
        try:
            opened = read_photo(lambda source=source: photos.read(Place(source)))
        except Reject:
            continue
        maker.detector.detect([opened.pixels])
    return time.perf_counter() - started


def ours(plan: Plan, photos: PhotoStore, maker: CropMaker) -> float:
    """Seconds to make the shards."""
    out = Path(tempfile.mkdtemp(prefix="sharding-"))
    try:
        save_plan(plan, out)
        started = time.perf_counter()
        for number in range(plan.num_shards):
            process_shard(plan, number, photos, out, maker)
        return time.perf_counter() - started
    finally:
        shutil.rmtree(out)


def pool_rate(plan: Plan, photos: PhotoStore, weights: Path | None, num_workers: int) -> float:
    """Photos a second of the command's pool, after the first slice: loading libraries and networks is not in it."""
    out = Path(tempfile.mkdtemp(prefix="sharding-"))
    done: list[tuple[float, int]] = []
    try:
        save_plan(plan, out)
        run_local(plan, photos, out, weights, num_workers, lambda count: done.append((time.perf_counter(), count)))
    finally:
        shutil.rmtree(out)
    return sum(count for _, count in done[1:]) / (done[-1][0] - done[0][0])


if __name__ == "__main__":
    main()
