"""A JPEG's header, read without decoding: what both decoders check first, so that both refuse the same samples."""

from __future__ import annotations

from functools import lru_cache

_START = b"\xff\xd8"
_END = b"\xff\xd9"
# Start-of-frame markers; C4, C8 and CC in this range mean other things.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD8)})
_START_OF_SCAN = 0xDA


# What an encoder writes before the frame header, tables and all, and the header itself: with two tables 177 bytes
_USUAL_HEADER_BYTES = 192


def jpeg_size(content: bytes | bytearray) -> tuple[int, int]:
    """Find the frame's size.

    Returns:
        (width, height) in px.

    Raises:
        ValueError: no JPEG from its first to its last marker, with what is wrong.
    """
    if content[:2] != _START:
        raise ValueError("no JPEG start marker")
    if content[-2:] != _END:
        raise ValueError("no JPEG end marker")
    return _usual_size(bytes(content[:_USUAL_HEADER_BYTES])) or _frame_size(content)


@lru_cache(maxsize=64)
def _usual_size(start: bytes) -> tuple[int, int] | None:
    """The frame's size where its header stands early: crops of one encoder and size begin with the same bytes."""
    try:
        return _frame_size(start)
    except ValueError:
        return None


def _frame_size(content: bytes | bytearray) -> tuple[int, int]:
    place = 2
    while place + 4 <= len(content):
        if content[place] != 0xFF:
            raise ValueError(f"no marker at byte {place}")
        marker = content[place + 1]
        if marker == 0xFF:  # fill byte
            place += 1
            continue
        if marker in _WITHOUT_LENGTH:
            place += 2
            continue
        if marker == _START_OF_SCAN:
            break
        length = int.from_bytes(content[place + 2 : place + 4], "big")
        if marker in _FRAMES:
            frame = content[place + 5 : place + 9]
            if len(frame) < 4:
                break
            return int.from_bytes(frame[2:], "big"), int.from_bytes(frame[:2], "big")
        place += 2 + length
    raise ValueError("no JPEG frame header")
