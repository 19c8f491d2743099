"""How far landmarks move when a photo is shrunk before faces are looked for.

    python benchmarks/landmarks.py PHOTOS
    python benchmarks/landmarks.py PHOTOS --detector yunet --weights yunet.onnx

Photos whose longest side is above a detector's limit are shrunk to it, and crops are cut from the full photo at the
landmarks put back to its size. Each photo's largest face is found at full size, then on the photo shrunk so that the
face's shorter side has so many pixels. The landmarks' mean distance is given in parts of the distance between the eyes.

The first line is the detector's own unrest: the same photo without its first row and column.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from preprocess.detect import Detector, Face, load_detector
from preprocess.detect.resize import shrink, to_faces
from preprocess.photo import read_photo
from preprocess.sources import read_source
from preprocess.sources.store import Place


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="folder of identity folders")
    parser.add_argument("--detector", default="mtcnn")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--count", type=int, default=300, help="photos")
    parser.add_argument("--sides", type=int, nargs="+", default=[96, 80, 64, 48, 36, 28], help="of a face, px")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    detector = load_detector(arguments.detector, arguments.weights, min_face_px=20)
    store, listing, _ = read_source(arguments.photos)
    sources = listing["source"].to_pylist()[:: max(1, len(listing) // arguments.count)]
    photos = [read_photo(lambda source=source: store.read(Place(source))).pixels for source in sources]
    found = [(photo, face) for photo in photos if (face := largest(detector, photo)) is not None]
    moved: dict[str, list[float | None]] = {"shifted by a pixel": []}
    for photo, face in found:
        moved["shifted by a pixel"].append(distance(face.landmarks, largest(detector, photo[1:, 1:]), shift_px=1.0))
    seconds = {}
    for side_px in arguments.sides:
        started, results = time.perf_counter(), []
        for photo, face in found:
            if face.side_px < side_px:
                continue
            small, scale = shrink(photo, round(max(photo.shape[:2]) * side_px / face.side_px))
            results.append(distance(face.landmarks, largest(detector, small, scale)))
        name = f"face of {side_px} px"
        moved[name], seconds[name] = results, time.perf_counter() - started
    table = Table("", "photos", "found, %", "median, %", "95th percentile, %", "ms a photo")
    for name, results in moved.items():
        errors = sorted(100 * error for error in results if error is not None)
        if errors:
            figures = [statistics.median(errors), errors[int(0.95 * (len(errors) - 1))]]
            pace = f"{1000 * seconds[name] / len(results):.1f}" if name in seconds else ""
            share = f"{100 * len(errors) / len(results):.1f}"
            table.add_row(name, str(len(results)), share, *(f"{figure:.2f}" for figure in figures), pace)
    print(f"{arguments.detector}: {len(found)} of {len(photos)} photos with a face; distances in parts of the eyes'")
    Console(width=100).print(table)


def largest(detector: Detector, photo: npt.NDArray[np.uint8], scale: float = 1.0) -> Face | None:
    """The largest face on a photo that was shrunk to `scale`, if there is one, in px of the full photo."""
    face = max(detector.detect([photo])[0], key=lambda face: face.area_px2, default=None)
    if face is None:
        return None
    return to_faces(face.bbox[None], face.landmarks[None], np.array([face.score]), scale)[0]


def distance(expected: npt.NDArray[np.float32], face: Face | None, shift_px: float = 0.0) -> float | None:
    """Mean distance of landmarks in parts of the distance between the eyes; None where another face was found, or none.

    Args:
        expected: [5, 2], in px of the full photo, eyes first.
        face: found on the photo without its first `shift_px` rows and columns.
        shift_px: see there.
    """
    if face is None:
        return None
    eyes = float(np.linalg.norm(expected[1] - expected[0]))
    error = float(np.linalg.norm(face.landmarks + shift_px - expected, axis=1).mean()) / eyes
    return error if error < 0.5 else None


if __name__ == "__main__":
    main()
