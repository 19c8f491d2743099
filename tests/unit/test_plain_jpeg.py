"""Which JPEGs may stand in a data set as they came."""

from __future__ import annotations

import io
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.data.jpeg import jpeg_size
from preprocess.plain_jpeg import is_plain_jpeg
from tests.datasets import encode_jpeg, random_image

PIXELS = random_image(np.random.default_rng(1), 32)
JPEG = encode_jpeg(PIXELS)


def pillow(**options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


@pytest.mark.parametrize("data", [JPEG, pillow(), pillow(subsampling=0), pillow(quality=30, optimize=True)])
def test_plain(data: bytes) -> None:
    assert is_plain_jpeg(data, 32)
    assert jpeg_size(data) == (32, 32)  # what the loader asks of every sample


@pytest.mark.parametrize(
    "make",
    [
        lambda: pillow(exif=turned()),
        lambda: pillow(comment=b"taken at home"),
        lambda: pillow(icc_profile=b"x" * 200),
        lambda: JPEG + b"\0",
        lambda: JPEG + JPEG,
        lambda: JPEG[:-2],
        lambda: JPEG[:100],
        lambda: JPEG.replace(b"\x08\x00\x20\x00\x20\x03", b"\x08\x00\x21\x00\x20\x03"),
        lambda: encode_jpeg(PIXELS[:, :16]),
        lambda: cv2.imencode(".jpg", PIXELS[..., 0])[1].tobytes(),
        lambda: cv2.imencode(".png", PIXELS)[1].tobytes(),
        lambda: JPEG[:2] + b"\xff\xe0\x00\x20JFIF\x00" + b"t" * 25 + JPEG[2:],  # a thumbnail
        lambda: b"",
    ],
)  # fmt: skip
def test_not_plain(make: Callable[[], bytes]) -> None:
    assert not is_plain_jpeg(make(), 32)


def test_cmyk_is_not_plain() -> None:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).convert("CMYK").save(buffer, "JPEG")
    assert not is_plain_jpeg(buffer.getvalue(), 32)


@given(st.binary(max_size=60), st.integers(0, len(JPEG)), st.integers(0, 40))
def test_garbage_ends(middle: bytes, place: int, gone: int) -> None:
    is_plain_jpeg(JPEG[:place] + middle + JPEG[place + gone :], 32)
