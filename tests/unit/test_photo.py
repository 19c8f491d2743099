"""Reading photos: what each kind of bad file is called, and that every kind of good one gives the same pixels."""

from __future__ import annotations

import errno
import io
import os
import re
import socket
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from pipeline.config.errors import UserError
from preprocess.photo import MAX_PHOTO_PX, Reject, decode_photo, encode_jpeg, make_thumbnail, read_photo

Pixels = npt.NDArray[np.uint8]


def picture(height: int = 48, width: int = 64) -> Pixels:
    """Smooth and asymmetric, so that turns show and JPEG keeps it well."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (height + width)], 2).astype(np.uint8)


def encoded(pixels: Pixels, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def reason(data: bytes) -> str:
    with pytest.raises(Reject) as caught:
        decode_photo(data)
    return caught.value.reason


def png_header(width: int, height: int) -> bytes:
    """The first 33 bytes of a PNG: all that a bomb needs."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_formats(kind: str) -> None:
    options = {"quality": 95} if kind in ("JPEG", "WEBP") else {}
    decoded = decode_photo(encoded(picture(), kind, **options))
    assert decoded.shape == (48, 64, 3)
    assert np.abs(decoded.astype(int) - picture()).mean() < 4


def test_other_formats_are_not_images() -> None:
    assert reason(encoded(picture(), "GIF")) == "not_an_image"
    assert reason(b"%!PS-Adobe-3.0 EPSF-3.0\n") == "not_an_image"  # Pillow would start Ghostscript
    assert reason(b"just some text\n") == "not_an_image"
    assert reason(b"RIFF\x00\x00\x00\x00WAVE") == "not_an_image"


def test_empty() -> None:
    assert reason(b"") == "empty_file"


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_truncated_jpeg_is_not_silently_grey(share: float, options: dict[str, bool]) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (128, 128, 3), dtype=np.uint8)
    whole = encoded(noise, "JPEG", quality=90, **options)
    assert reason(whole[: int(len(whole) * share)]) == "truncated"


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "BMP"])
def test_other_truncated_files(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (128, 128, 3), dtype=np.uint8)
    whole = encoded(noise, kind)
    assert reason(whole[: len(whole) // 2]) in ("truncated", "corrupt")


def test_bomb_is_rejected_by_its_header() -> None:
    assert reason(png_header(60_000, 60_000)) == "too_large"
    assert reason(png_header(MAX_PHOTO_PX // 1000 + 1, 1000)) == "too_large"  # just beyond our own limit


def test_garbage_after_the_magic_bytes() -> None:
    assert reason(b"\xff\xd8\xff" + bytes(100)) == "corrupt"


@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int, kind: str) -> None:
    # How the upright picture must be stored so that this orientation turns it back.
    stored = {
        1: lambda p: p,
        2: lambda p: p[:, ::-1],
        3: lambda p: p[::-1, ::-1],
        4: lambda p: p[::-1],
        5: lambda p: p.transpose(1, 0, 2),
        6: lambda p: np.rot90(p, 1),  # the viewer turns it 90 degrees clockwise
        7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
        8: lambda p: np.rot90(p, -1),
    }[orientation](picture())
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if kind in ("JPEG", "WEBP") else {}
    decoded = decode_photo(encoded(np.ascontiguousarray(stored), kind, exif=exif, **options))
    assert decoded.shape == (48, 64, 3)
    assert np.abs(decoded.astype(int) - picture()).mean() < 4


def test_broken_exif_does_not_matter() -> None:
    data = encoded(picture(), "JPEG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff\x00\x00")
    assert decode_photo(data).shape == (48, 64, 3)


def test_grey_is_repeated() -> None:
    decoded = decode_photo(encoded(picture()[..., 0], "PNG"))
    np.testing.assert_array_equal(decoded, np.repeat(picture()[..., :1], 3, 2))


def test_sixteen_bits_keep_their_upper_eight() -> None:
    grey = picture()[..., 0]
    decoded = decode_photo(encoded(grey.astype(np.uint16) * 257, "PNG"))
    np.testing.assert_array_equal(decoded[..., 1], grey)


def test_sixteen_bit_colour() -> None:
    import cv2

    data = cv2.imencode(".png", picture()[..., ::-1].astype(np.uint16) * 257)[1].tobytes()
    np.testing.assert_array_equal(decode_photo(data), picture())
    data = cv2.imencode(".tiff", picture()[..., ::-1].astype(np.uint16) * 257)[1].tobytes()
    np.testing.assert_array_equal(decode_photo(data), picture())


def test_alpha_lies_over_black() -> None:
    alpha = np.full((48, 64, 1), 255, np.uint8)
    alpha[:, :32] = 0
    decoded = decode_photo(encoded(np.concatenate([picture(), alpha], 2), "PNG"))
    assert (decoded[:, :32] == 0).all()
    np.testing.assert_array_equal(decoded[:, 32:], picture()[:, 32:])


def test_palette_and_bilevel() -> None:
    image = Image.fromarray(picture())
    for mode in ("P", "1"):
        buffer = io.BytesIO()
        image.convert(mode).save(buffer, "PNG")
        assert decode_photo(buffer.getvalue()).shape == (48, 64, 3)


def test_cmyk_keeps_light_and_dark_apart() -> None:
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:, 32:] = 255
    for kind in ("JPEG", "TIFF"):
        buffer = io.BytesIO()
        Image.fromarray(pixels).convert("CMYK").save(buffer, kind)
        decoded = decode_photo(buffer.getvalue())
        assert decoded[:, :24].max() < 30, kind
        assert decoded[:, 40:].min() > 225, kind


def test_paths_that_cannot_be_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.jpg"
    os.mkfifo(pipe)
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    expected = {
        pipe: "not_a_file",
        tmp_path: "not_a_file",
        tmp_path / "missing.jpg": "unreadable",
        tmp_path / "dangling.jpg": "unreadable",
        tmp_path / "loop.jpg": "unreadable",
        tmp_path / "nul\0.jpg": "unreadable",
    }
    for path, word in expected.items():
        with pytest.raises(Reject) as caught:
            read_photo(path)
        assert caught.value.reason == word, path


def test_a_socket_is_not_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.jpg")
        with pytest.raises(Reject, match="not_a_file"):
            read_photo("socket.jpg")


@pytest.mark.parametrize("code", [errno.EIO, errno.EMFILE, errno.ESTALE, errno.ENOMEM])
def test_a_failing_disk_is_no_reject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def fail(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(UserError, match=re.escape(f"cannot be read ({os.strerror(code)})")):
        read_photo(tmp_path / "a.jpg")


def test_a_read_that_fails_is_no_reject() -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_photo("/proc/self/mem")  # a regular file; reading its first byte gives EIO


def test_lack_of_memory_is_no_reject(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "load", fail)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    with pytest.raises(MemoryError):
        decode_photo(encode_jpeg(picture(), 95))


def test_a_reject_that_was_read_keeps_its_hash_and_size(tmp_path: Path) -> None:
    (tmp_path / "bomb.jpg").write_bytes(png_header(60_000, 20_000)[:33])
    with pytest.raises(Reject) as caught:
        read_photo(tmp_path / "bomb.jpg")
    assert len(caught.value.source_sha256) == 64


def test_encoding_round_trip_and_thumbnail() -> None:
    decoded = decode_photo(encode_jpeg(picture(), 95))
    assert np.abs(decoded.astype(int) - picture()).mean() < 3
    assert max(decode_photo(make_thumbnail(picture(300, 700))).shape) == 96
    assert decode_photo(make_thumbnail(picture(1, 700))).shape == (1, 96, 3)
