"""The header check that stands before every decoder."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from pipeline.data.jpeg import jpeg_size


def encode(width: int, height: int, *flags: int, grey: bool = False) -> bytes:
    shape = (height, width) if grey else (height, width, 3)
    return cv2.imencode(".jpg", np.full(shape, 90, np.uint8), list(flags))[1].tobytes()


@pytest.mark.parametrize("flags", [(), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1), (cv2.IMWRITE_JPEG_RST_INTERVAL, 1)])
@pytest.mark.parametrize("grey", [False, True])
def test_size_is_found(flags: tuple[int, ...], grey: bool) -> None:
    assert jpeg_size(encode(37, 21, *flags, grey=grey)) == (37, 21)


def test_other_segments_are_skipped() -> None:
    content = encode(8, 9)
    # A frame header inside a comment, as in an embedded thumbnail, does not count; fill bytes are allowed.
    comment = b"\xff\xc0\x00\x11\x08\x00\x01\x00\x01"
    segment = b"\xff\xff\xfe" + (2 + len(comment)).to_bytes(2, "big") + comment
    assert jpeg_size(content[:2] + segment + content[2:]) == (8, 9)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no JPEG start"),
        (b"\x89PNG", "no JPEG start"),
        (encode(8, 8)[:-2], "no JPEG end"),
        (b"\xff\xd8\xff\xd9", "no JPEG frame"),
        (b"\xff\xd8\x00\x00\x00\x00\xff\xd9", "no marker at byte 2"),
        (b"\xff\xd8\xff\xc0\x00\x11\x08\xff\xd9", "no JPEG frame"),
        (b"\xff\xd8\xff\xda\x00\x08\x00\xff\xd9", "no JPEG frame"),
        (b"\xff\xd8\xff\xe0\xff\xff\x00\xff\xd9", "no JPEG frame"),
    ],
)
def test_what_is_no_jpeg_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        jpeg_size(content)


def test_every_truncation_is_refused_or_read_without_an_accident() -> None:
    content = encode(8, 8)
    for size in range(len(content)):
        with pytest.raises(ValueError, match="no JPEG"):
            jpeg_size(content[:size])
