"""Photos of many synthetic people on disk, with their sidecar.

    OUT/synthetic.json            what the photos depend on; written first
    OUT/person-00012/0003.jpg     one photo
    OUT/annotations.parquet       path, identity, bbox, landmarks, yaw, pitch, roll; written last

Every file is a pure function of the settings, so the same bytes come from any number of workers and any interruption.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.errors import UserError
from preprocess.synthetic.render import MIN_SIZE_PX, PhotoTruth, RenderedPhoto, photo_truth, render_photo
from preprocess.workers import stop_between_tasks, wait_for_any, worker_pool

ANNOTATIONS = "annotations.parquet"
SETTINGS = "synthetic.json"
_RENDERER_VERSION = 1  # raise when the same arguments give other pixels
_ROWS_PER_GROUP = 16_384
_SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("identity", pa.string()),
        ("bbox", pa.list_(pa.float32(), 4)),
        ("landmarks", pa.list_(pa.float32(), 10)),
        ("yaw", pa.float32()),
        ("pitch", pa.float32()),
        ("roll", pa.float32()),
    ]
)


@dataclass(frozen=True)
class Settings:
    """What the bytes of a photo depend on, besides its identity and number."""

    seed: int
    size_px: int
    quality: int
    renderer_version: int = _RENDERER_VERSION


@dataclass(frozen=True)
class WriteSummary:
    """Outcome of `write_photos`."""

    num_identities: int
    num_photos: int
    num_rendered: int  # the others were there already
    num_bytes: int
    elapsed_s: float


def identity_name(identity: int) -> str:
    """Folder name of an identity."""
    return f"person-{identity:05d}"


def write_photos(
    out: Path,
    num_identities: int,
    photos_per_identity: int,
    seed: int,
    size_px: int,
    quality: int,
    workers: int,
    progress: Callable[[int, int], None] | None = None,
) -> WriteSummary:
    """Render the photos that `out` does not hold yet, then write the sidecar.

    Args:
        quality: of the JPEG files, 1..100.
        progress: told (photos done, of them rendered now) after each identity.

    Raises:
        UserError: when `out` holds something else, other settings or more photos, or a worker died.
    """
    started_s = time.monotonic()
    settings = Settings(seed, size_px, quality)
    _check_sizes(num_identities, photos_per_identity, settings, workers)
    _claim(out, settings, num_identities, photos_per_identity)
    done = rendered = num_bytes = 0
    aside = out / (ANNOTATIONS + ".tmp")
    with pq.ParquetWriter(aside, _SCHEMA) as writer:
        pending: list[dict[str, Any]] = []
        for rows, new, size in _identities(out, settings, num_identities, photos_per_identity, workers):
            pending += rows
            done, rendered, num_bytes = done + len(rows), rendered + new, num_bytes + size
            if len(pending) >= _ROWS_PER_GROUP:
                writer.write_table(pa.Table.from_pylist(pending, _SCHEMA))
                pending = []
            if progress:
                progress(done, rendered)
        if pending:
            writer.write_table(pa.Table.from_pylist(pending, _SCHEMA))
    _into_place(aside, out / ANNOTATIONS)
    return WriteSummary(num_identities, done, rendered, num_bytes, time.monotonic() - started_s)


def _check_sizes(num_identities: int, photos_per_identity: int, settings: Settings, workers: int) -> None:
    for option, found, least in (
        ("--identities", num_identities, 1),
        ("--photos", photos_per_identity, 1),
        ("--size", settings.size_px, MIN_SIZE_PX),
        ("--quality", settings.quality, 1),
        ("--seed", settings.seed, 0),
        ("--workers", workers, 1),
    ):
        if found < least:
            raise UserError(option, str(found), f"at least {least}")
    if settings.size_px % 2:
        raise UserError("--size", str(settings.size_px), "an even number")
    if settings.quality > 100:
        raise UserError("--quality", str(settings.quality), "at most 100")
    if settings.seed >= 2**63:
        raise UserError("--seed", str(settings.seed), "less than 2^63")


def _claim(out: Path, settings: Settings, num_identities: int, photos_per_identity: int) -> None:
    """Make `out` ours, or check that it is."""
    record = out / SETTINGS
    wanted = {**asdict(settings), "num_identities": num_identities, "photos_per_identity": photos_per_identity}
    if out.exists() and not out.is_dir():
        raise UserError(out, "is a file", "a folder", "choose another OUT")
    if record.exists():
        try:
            found = json.loads(record.read_text())
        except ValueError:
            raise UserError(record, "is not JSON", remedy="delete the folder or choose another OUT") from None
        for key, value in asdict(settings).items():
            if found.get(key) != value:
                raise UserError(
                    out, f"holds photos made with {key} {found.get(key)}", f"{value}", "choose another OUT or delete it"
                )
        for key in ("num_identities", "photos_per_identity"):
            if found.get(key, 0) > wanted[key]:
                raise UserError(
                    out, f"holds photos for {key} {found[key]}", f"at most {wanted[key]}", "choose another OUT"
                )
    elif out.exists() and any(out.iterdir()):
        raise UserError(out, "is not empty and holds no synthetic photos", remedy="choose another OUT")
    out.mkdir(parents=True, exist_ok=True)
    aside = record.with_suffix(".tmp")
    aside.write_text(json.dumps(wanted, indent=1) + "\n")
    _into_place(aside, record)


def _into_place(aside: Path, final: Path) -> None:
    with aside.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(aside, final)


def _identities(out: Path, settings: Settings, num_identities: int, photos: int, workers: int) -> Any:
    """Yield each identity's (rows, photos rendered, bytes) in order."""
    if workers == 1:
        for identity in range(num_identities):
            yield _write_identity(out, settings, identity, photos)
        return
    window: deque[Future[Any]] = deque()
    with worker_pool(workers, _use_one_thread) as pool:
        try:
            with stop_between_tasks(BrokenProcessPool) as ask:
                for identity in range(num_identities):
                    window.append(pool.submit(_write_identity, out, settings, identity, photos))
                    if len(window) >= 8 * workers:
                        yield wait_for_any([window.popleft()], ask).pop().result()
                while window:
                    yield wait_for_any([window.popleft()], ask).pop().result()
        except BrokenProcessPool:
            raise UserError(
                "--workers",
                "a worker was killed",
                remedy="run the same command again, with fewer workers if memory is short",
            ) from None


def _use_one_thread() -> None:
    cv2.setNumThreads(1)


def _write_identity(out: Path, settings: Settings, identity: int, photos: int) -> tuple[list[dict[str, Any]], int, int]:
    name = identity_name(identity)
    folder = out / name
    folder.mkdir(exist_ok=True)
    rows, rendered, num_bytes = [], 0, 0
    for photo in range(photos):
        path = folder / f"{photo:04d}.jpg"
        size = path.stat().st_size if path.exists() else 0
        truth: PhotoTruth
        if size:
            truth = photo_truth(settings.seed, identity, photo, settings.size_px)
        else:
            picture = render_photo(settings.seed, identity, photo, settings.size_px)
            size = _write_photo(path, picture, settings.quality)
            truth = picture
            rendered += 1
        num_bytes += size
        rows.append(
            {
                "path": f"{name}/{path.name}",
                "identity": name,
                "bbox": truth.bbox.tolist(),
                "landmarks": truth.landmarks.ravel().tolist(),
                "yaw": truth.yaw,
                "pitch": truth.pitch,
                "roll": truth.roll,
            }
        )
    return rows, rendered, num_bytes


def _write_photo(path: Path, picture: RenderedPhoto, quality: int) -> int:
    """Write one JPEG aside, then name it; returns its bytes."""
    _, encoded = cv2.imencode(".jpg", picture.image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    aside = path.with_name(f".{path.name}.tmp")
    aside.write_bytes(encoded.tobytes())
    os.replace(aside, path)
    return int(encoded.size)
