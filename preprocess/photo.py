"""From a file or its bytes to upright RGB pixels, without trusting them.

A photo that cannot be used raises `Reject` with a reason; the reasons become rows of the manifest. The order of checks
matters: type of file, size on disk, magic bytes, the header's dimensions, and only then the decoder.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.config.errors import UserError
from preprocess.storage import GOES_ON, storage_error

MAX_FILE_BYTES = 256 * 2**20
MAX_PHOTO_PX = 100_000_000
"""Width times height beyond which a photo is rejected before it is decoded (300 MB as RGB)."""

PHOTO_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_EXIF_ORIENTATION = 0x0112
_PATH_ERRORS = frozenset(
    {errno.ENOENT, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EISDIR}
)
"""What is wrong with one path. Any other error is the disk's, the network's or this machine's, and may pass."""


class Reject(Exception):
    """A photo that cannot be used. `reason` is a short word for the ledger."""

    def __init__(self, reason: str, source_sha256: str = "", width: int = 0, height: int = 0) -> None:
        super().__init__(reason)
        self.reason, self.source_sha256, self.width, self.height = reason, source_sha256, width, height


@dataclass(frozen=True)
class Photo:
    """A decoded photo. `pixels`: [H, W, 3] uint8 RGB, upright."""

    pixels: npt.NDArray[np.uint8]
    source_sha256: str


def read_photo(photo: str | os.PathLike[str] | Callable[[], bytes]) -> Photo:
    """Read and decode a photo.

    Args:
        photo: its path, or a function that gives its bytes and raises as `read_file` does.

    Raises:
        Reject: unreadable, not_a_file, empty_file, too_large, not_an_image, truncated or corrupt.
        TemporaryError: reading failed for a reason that is not the photo's, such as a broken disk or network.
        MemoryError: there is not enough memory to decode it, which says nothing about the photo.
    """
    data = photo() if callable(photo) else read_file(photo)
    source_sha256 = hashlib.sha256(data).hexdigest()
    try:
        return Photo(decode_photo(data), source_sha256)
    except Reject as reject:
        reject.source_sha256 = source_sha256
        raise


def decode_photo(data: bytes) -> npt.NDArray[np.uint8]:
    """Decode to [H, W, 3] uint8 RGB with the EXIF orientation applied.

    Grey is repeated over the channels, 16 bits keep their upper 8, alpha is laid over black (the crops' border is
    black too), CMYK and the other colour spaces go through Pillow. Of an animation, the first frame.

    Raises:
        Reject: empty_file, not_an_image, too_large, truncated or corrupt.
        MemoryError: there is not enough memory.
    """
    if not data:
        raise Reject("empty_file")
    if not _has_known_magic(data):
        raise Reject("not_an_image")
    if data.startswith(_PNG_MAGIC):  # Pillow parses a PNG up to its pixels before it tells the size
        width, height = (int.from_bytes(data[start : start + 4], "big") for start in (16, 20))
        if width * height > MAX_PHOTO_PX:
            raise Reject("too_large", width=width, height=height)
    # Decoders warn about harmless oddities in metadata; whether the photo is usable is decided by what is raised.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                width, height = image.size
                if width * height > MAX_PHOTO_PX:
                    raise Reject("too_large", width=width, height=height)
                image.load()
                orientation = _orientation(image)  # after load: Pillow turns a TIFF itself and drops the tag
                pixels = _to_rgb(image)
        except Image.DecompressionBombError:
            raise Reject("too_large") from None
        except (Reject, MemoryError):
            raise
        except Exception as error:  # decoders raise whatever their parser ran into: all of it means "bad file"
            raise Reject("truncated" if "truncated" in str(error).lower() else "corrupt") from None
    return _turn(pixels, orientation)


def encode_jpeg(pixels: npt.NDArray[np.uint8], quality: int) -> bytes:
    """Encode [H, W, 3] uint8 RGB as a baseline JPEG with 4:2:0 chroma."""
    done, encoded = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done, "the JPEG encoder refused an 8-bit RGB image"
    return encoded.tobytes()


def make_thumbnail(pixels: npt.NDArray[np.uint8], side_px: int = 96) -> bytes:
    """A small JPEG of a photo for the ledger of rejects; the longest side is at most `side_px`."""
    height, width = pixels.shape[:2]
    scale = min(1.0, side_px / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return encode_jpeg(np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8), 70)


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a photo's file.

    Raises:
        Reject: unreadable, not_a_file or too_large.
        TemporaryError: reading failed for a reason that is not the photo's, such as a broken disk or network.
    """
    try:
        # O_NONBLOCK: opening a named pipe would otherwise wait for ever for someone to write to it.
        handle = os.open(Path(path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError:  # a NUL in a path from a list
        raise Reject("unreadable") from None
    except OSError as error:
        raise _judge(error, path) from None
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise Reject("not_a_file")
        if status.st_size > MAX_FILE_BYTES:
            raise Reject("too_large")
        with open(handle, "rb", closefd=False) as file:
            return file.read(MAX_FILE_BYTES)
    except OSError as error:
        raise _judge(error, path) from None
    finally:
        os.close(handle)


def _judge(error: OSError, path: str | os.PathLike[str]) -> Reject | UserError:
    """A reject when the path is to blame; else the run must stop, or a failing disk would pass for bad photos."""
    if error.errno in _PATH_ERRORS:
        return Reject("unreadable")
    if error.errno in (errno.ENXIO, errno.ENODEV):  # a socket, a device without a driver
        return Reject("not_a_file")
    return storage_error(path, "cannot be read", error, remedy=GOES_ON)


def _has_known_magic(data: bytes) -> bool:
    if data[:4] == b"RIFF":
        return data[8:12] == b"WEBP"
    return data.startswith((b"\xff\xd8\xff", _PNG_MAGIC, b"BM", b"II*\x00", b"MM\x00*"))


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except MemoryError:
        raise
    except Exception:  # a broken EXIF block says nothing about the pixels
        return 1


def _to_rgb(image: Image.Image) -> npt.NDArray[np.uint8]:
    if image.mode in ("I", "I;16", "I;16L", "I;16B", "I;16N"):
        grey = np.asarray(image).astype(np.int64)
        if image.mode != "I" or grey.max(initial=0) > 255:
            grey >>= 8
        return np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode == "F":
        raise Reject("corrupt")  # floats carry no known range
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        black = Image.new("RGBA", rgba.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, rgba)
    return np.array(image.convert("RGB"))


def _turn(pixels: npt.NDArray[np.uint8], orientation: int) -> npt.NDArray[np.uint8]:
    """Apply an EXIF orientation, 1 to 8; other values mean upright."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
