"""Whether a JPEG may stand in a data set as it came: no pixel is lost by encoding it again, and nothing rides along.

ITU-T T.81, annex B: a JPEG is a chain of segments, each a marker (0xFF and a code), a length and content.
"""

from __future__ import annotations

_START, _END = b"\xff\xd8", b"\xff\xd9"
_FRAMES = frozenset({0xC0, 0xC1, 0xC2})  # baseline, extended and progressive, Huffman-coded
_START_OF_SCAN = 0xDA
_JFIF, _ADOBE = 0xE0, 0xEE
_ALLOWED = frozenset({0xC4, 0xDB, 0xDD, _JFIF, _ADOBE}) | _FRAMES  # with tables for codes, quantisation and restarts


def is_plain_jpeg(data: bytes, size_px: int) -> bool:
    """Whether `data` is one 8-bit colour JPEG, `size_px` squared, without metadata.

    EXIF blocks (a turn, a place, a thumbnail of the uncropped photo), comments and colour profiles make it not plain;
    so does whatever follows its end marker. The scan itself is not decoded here.
    """
    if data[:2] != _START or data[-2:] != _END:
        return False
    place = 2
    frame = b""
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        length = int.from_bytes(data[place + 2 : place + 4], "big")
        content = data[place + 4 : place + 2 + length]
        if marker == _START_OF_SCAN:
            return _is_colour_frame(frame, size_px) and _ends_once(data, place)
        if marker not in _ALLOWED or (marker == _JFIF and not _is_bare_jfif(content)):
            return False
        if marker in _FRAMES:
            if frame:
                return False
            frame = content
        place += 2 + length
    return False


def _is_colour_frame(frame: bytes, size_px: int) -> bool:
    """Precision, height, width and number of components."""
    expected = bytes([8]) + size_px.to_bytes(2, "big") * 2 + bytes([3])
    return frame[:6] == expected


def _is_bare_jfif(content: bytes) -> bool:
    """A JFIF header without the thumbnail that it may hold."""
    return content[:5] == b"JFIF\0" and len(content) == 14


def _ends_once(data: bytes, scan: int) -> bool:
    """Entropy-coded bytes never spell a marker, so the first end marker after the scan begins ends the picture.

    What stands between the scans of a progressive JPEG are tables, whose bytes may spell one: it is not plain then.
    """
    return data.find(_END, scan) == len(data) - 2
