"""Weight files of detectors: where they come from, which bytes they are, and where they are kept.

A hash stands here only when its source says so: it is named beside it.
"""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from pipeline.atomic_write import sync_folder
from pipeline.config.errors import UserError
from pipeline.config.location import user_cache
from preprocess.detect import file_sha256

_BLOCK_BYTES = 2**18
_TIMEOUT_S = 30.0
_HTTP_RANGE_REFUSED = 416


@dataclass(frozen=True)
class WeightFile:
    """A published weight file."""

    url: str
    sha256: str
    num_bytes: int
    licence: str
    detector: str
    """For which `--detector` it is."""

    @property
    def file_name(self) -> str:
        return self.url.rpartition("/")[2]


WEIGHTS = {
    # sha256 and size: the Git LFS pointer of that file in opencv/opencv_zoo, at the commit in the address
    "yunet": WeightFile(
        url="https://github.com/opencv/opencv_zoo/raw/82b38c8f98e7b52aa171400f3e4c722352d0669f"
        "/models/face_detection_yunet/face_detection_yunet_2023mar.onnx",
        sha256="8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4",
        num_bytes=232_589,
        licence="MIT",
        detector="yunet",
    ),
}


def weights_folder() -> Path:
    """Where downloads are kept: $FACEMILL_WEIGHTS, else facemill/weights in the user's cache folder."""
    chosen = os.environ.get("FACEMILL_WEIGHTS")
    if chosen:
        return Path(chosen)
    return user_cache() / "weights"


def kept_weights(detector: str) -> Path | None:
    """The downloaded weights of a detector, or None. `preprocess weights` checked them before they got their name."""
    for weights in WEIGHTS.values():
        path = weights_folder() / weights.file_name
        if weights.detector == detector and path.is_file():
            return path
    return None


def find_weights(name: str) -> WeightFile:
    """Raises:
    UserError: no such weights.
    """
    if name not in WEIGHTS:
        raise UserError("NAME", f"unknown weights {name!r}", f"one of {', '.join(sorted(WEIGHTS))}")
    return WEIGHTS[name]


def download(weights: WeightFile, folder: Path, on_bytes: Callable[[int], None]) -> Path:
    """Fetch a weight file, or find it there; an interrupted download goes on where it stopped.

    Args:
        weights: which.
        folder: where it is put; made when missing.
        on_bytes: told the number of bytes that have come so far.

    Raises:
        UserError: the server does not give it, or gives other bytes; those are kept beside it as `.refused`.
    """
    path = folder / weights.file_name
    if path.is_file():
        found = file_sha256(path)
        if found == weights.sha256:
            return path
        raise UserError(path, f"sha256 {found}", f"sha256 {weights.sha256}", "delete it and repeat the command")
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{weights.file_name}.part"
    _fetch(weights, partial, on_bytes)
    size = partial.stat().st_size
    if size < weights.num_bytes:
        found = f"the server closed after {size:,} of {weights.num_bytes:,} bytes"
        raise UserError(weights.url, found, remedy="repeat the same command, it goes on where it stopped")
    found = file_sha256(partial)
    if found != weights.sha256:
        refused = folder / f"{weights.file_name}.refused"
        os.replace(partial, refused)
        raise UserError(weights.url, f"sha256 {found} (kept as {refused})", f"sha256 {weights.sha256}")
    os.replace(partial, path)
    sync_folder(folder)
    return path


def _fetch(weights: WeightFile, partial: Path, on_bytes: Callable[[int], None]) -> None:
    """Append what is missing to `partial`; a connection that breaks leaves what had come."""
    done = partial.stat().st_size if partial.is_file() else 0
    if done >= weights.num_bytes:
        return
    request = urllib.request.Request(weights.url, headers={"Range": f"bytes={done}-"} if done else {})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
            goes_on = response.status == 206 and (response.headers.get("Content-Range") or "").startswith(
                f"bytes {done}-"
            )
            with open(partial, "ab" if goes_on else "wb") as file:
                done = file.tell()
                # one byte more than expected shows that the file is another
                while done <= weights.num_bytes and (block := response.read(_BLOCK_BYTES)):
                    file.write(block)
                    done += len(block)
                    on_bytes(done)
                file.flush()
                os.fsync(file.fileno())
    except urllib.error.HTTPError as error:
        if error.code == _HTTP_RANGE_REFUSED:
            partial.unlink()
        raise UserError(
            weights.url, f"the server answers {error.code} {error.reason}", remedy="try again later"
        ) from None
    except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", None) or error
        remedy = "repeat the same command, it goes on where it stopped"
        raise UserError(weights.url, f"cannot be fetched ({reason})", remedy=remedy) from None
