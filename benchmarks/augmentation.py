"""What each operation of augmentation costs, in microseconds a crop on one core.

python benchmarks/augmentation.py
"""

from __future__ import annotations

import statistics
import time
import typing

import cv2
import numpy as np

from pipeline.config import augment
from pipeline.data.augment import draw_steps
from pipeline.data.photo_steps import apply_step

SIDES_PX = (64, 112)
CROPS = 256
REPEATS = 7


def main() -> None:
    """Time every operation, always applied, with its default ranges."""
    cv2.setNumThreads(1)
    rng = np.random.default_rng(0)
    print(f"{'operation':22}" + "".join(f"{side:>5} px" for side in SIDES_PX))
    for kind in typing.get_args(augment.Leaf):
        found = []
        for side in SIDES_PX:
            photos = [
                cv2.resize(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8), (side, side), interpolation=cv2.INTER_CUBIC)
                for _ in range(CROPS)
            ]
            (step,) = draw_steps([kind(probability=1.0)], 0, np.arange(CROPS), side)
            values = [step.at(slot) for slot in range(CROPS)]
            times = []
            for _ in range(REPEATS):
                started = time.perf_counter()
                for photo, of_slot in zip(photos, values, strict=True):
                    apply_step(step.kind, photo, of_slot)
                times.append((time.perf_counter() - started) / CROPS)
            found.append(1e6 * statistics.median(times))
        print(f"{step.kind:22}" + "".join(f"{cost:8.0f}" for cost in found), flush=True)


if __name__ == "__main__":
    main()
