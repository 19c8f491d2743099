"""Measure the synthetic photos, or draw the contact sheet of the documentation.

    OMP_NUM_THREADS=1 python benchmarks/synthetic_faces.py --identities 120 --photos 4 --yunet-weights yunet.onnx
    python benchmarks/synthetic_faces.py --sheet docs/images/synthetic-faces.jpg

Detectors are judged against the rendered truth: a face counts as found when a box overlaps the true one by more than
0.4 (intersection over union); the landmark error is the mean distance of the five points over the interocular
distance. The raw-pixel figure is the area under the ROC curve of cosine similarity between aligned 32 px crops.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import cv2
import numpy as np
from sklearn.metrics import roc_auc_score

from preprocess.detect import load_detector
from preprocess.synthetic import RenderedPhoto, render_photo

_TEMPLATE_112 = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)


def main() -> None:
    """Parse the command line and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--identities", type=int, default=120)
    parser.add_argument("--photos", type=int, default=4)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--yunet-weights", type=Path)
    parser.add_argument("--sheet", type=Path, help="write a contact sheet instead: a row an identity")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    if arguments.sheet:
        write_sheet(arguments.sheet, arguments.seed)
        return
    photos, rate, cpu_rate = render_all(arguments.seed, arguments.identities, arguments.photos)
    print(f"{len(photos)} photos of {arguments.identities} identities, 168 px with JPEG: ", end="")
    print(f"{rate:.0f} photos/s by the clock, {cpu_rate:.0f} a second of processor time")
    report_detector("mtcnn", None, photos)
    if arguments.yunet_weights:
        report_detector("yunet", arguments.yunet_weights, photos)
    labels = np.repeat(np.arange(arguments.identities), arguments.photos)
    print(f"raw pixels: AUC {raw_pixel_auc(photos, labels):.3f}")


def render_all(seed: int, num_identities: int, num_photos: int) -> tuple[list[RenderedPhoto], float, float]:
    """Photos, photos a second by the clock and of processor time; the noise tiles are made beforehand."""
    render_photo(seed, num_identities, 0)
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    photos = []
    for identity in range(num_identities):
        for photo in range(num_photos):
            photos.append(render_photo(seed, identity, photo))
            cv2.imencode(".jpg", photos[-1].image, [cv2.IMWRITE_JPEG_QUALITY, 92])
    count = len(photos)
    return photos, count / (time.perf_counter() - wall_s), count / (time.process_time() - cpu_s)


def report_detector(name: str, weights: Path | None, photos: list[RenderedPhoto]) -> None:
    """Print one detector's share of faces found and its landmark error."""
    detector = load_detector(name, weights, min_face_px=40)
    errors = []
    for photo in photos:
        faces = [f for f in detector.detect([photo.image])[0] if overlap(f.bbox, photo.bbox) > 0.4]
        if faces:
            interocular = np.linalg.norm(photo.landmarks[1] - photo.landmarks[0])
            errors.append(np.linalg.norm(faces[0].landmarks - photo.landmarks, axis=1).mean() / interocular)
    median, high = np.percentile(errors, [50, 95])
    print(
        f"{name}: {len(errors) / len(photos):.2%} found, landmark error median {median:.3f}, 95th percentile {high:.3f}"
    )


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes."""
    shared = float(np.prod(np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0)))
    return shared / (float(np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2])) - shared)


def raw_pixel_auc(photos: list[RenderedPhoto], labels: np.ndarray) -> float:
    """How well pixels alone tell identities apart."""
    crops = []
    for photo in photos:
        matrix, _ = cv2.estimateAffinePartial2D(
            photo.landmarks.astype(float), _TEMPLATE_112 * 32 / 112, method=cv2.LMEDS
        )
        blurred = cv2.GaussianBlur(photo.image, (0, 0), 1.5)
        crops.append(cv2.warpAffine(blurred, matrix, (32, 32)).astype(np.float32).ravel())
    pixels = np.stack(crops)
    pixels -= pixels.mean(1, keepdims=True)
    pixels /= np.linalg.norm(pixels, axis=1, keepdims=True)
    first, second = np.triu_indices(len(photos), 1)
    return float(roc_auc_score(labels[first] == labels[second], (pixels @ pixels.T)[first, second]))


def write_sheet(path: Path, seed: int, num_rows: int = 6, num_columns: int = 9) -> None:
    """Write a sheet of photos, a row an identity."""
    rows = [np.hstack([render_photo(seed, i, p, 112).image for p in range(num_columns)]) for i in range(num_rows)]
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.vstack(rows)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 82])


if __name__ == "__main__":
    main()
