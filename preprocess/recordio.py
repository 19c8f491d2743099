"""RecordIO, the container of MXNet, and the image records that InsightFace keeps in it. No MXNet is needed.

The framing is that of dmlc-core's `recordio.h`: a little-endian word 0xced7230a, a word whose upper 3 bits are the
continuation flag and whose lower 29 are a length, the payload, zeros up to a multiple of 4. A payload that holds the
magic word at a multiple of 4 is split there: flag 0 is a whole record, 1, 2 and 3 its first, middle and last part, and
the reader puts the magic word back between parts.

An image record's payload (MXNet's `recordio.pack`) is `flag u32, label f32, id u64, id2 u64`; a flag above 0 says that
so many float32 labels follow and count instead of `label`; the rest is the encoded image. InsightFace adds records
without an image: key 0, whose two labels say where the records of identities begin and end, and one record an
identity, whose labels say where its images begin and end.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import IO, NamedTuple

from preprocess.photo import MAX_FILE_BYTES

MAX_EXACT_LABEL = 2**24
"""Whole numbers below this are exact as float32; this one might be the next one, rounded."""

_MAGIC = struct.pack("<I", 0xCED7230A)
_FRAME = struct.Struct("<4sI")
_HEADER = struct.Struct("<IfQQ")
_LENGTH_BITS = 29
_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)
_NUM_LABELS_READ = 2
_MAX_RECORD_BYTES = MAX_FILE_BYTES + 2**16
_HEAD_BYTES = _FRAME.size + _HEADER.size + 4 * _NUM_LABELS_READ


class RecordError(ValueError):
    """Bytes that are not the record they should be; says what is wrong, at which byte."""

    def __init__(self, offset: int, what: str) -> None:
        super().__init__(f"byte {offset:,}: {what}")


class RecordHead(NamedTuple):
    """What a record says of itself, without its image."""

    num_bytes: int
    """In the file, framing and padding included."""
    flag: int
    """Number of labels; 0 where there is one in the header."""
    labels: tuple[float, ...]
    """The first two at most."""
    id: int
    image_bytes: int


def read_head(descriptor: int, offset: int, file_bytes: int) -> RecordHead:
    """The head of the record at `offset` of a file of `file_bytes`.

    Raises:
        RecordError: no whole image record begins there.
        OSError: the disk or the network fails.
    """
    start = os.pread(descriptor, _HEAD_BYTES, offset)
    continued, length = _parse_frame(start, offset)
    if continued == _WHOLE:
        num_bytes = _FRAME.size + _padded(length)
        if offset + num_bytes > file_bytes:
            raise RecordError(offset, f"a record of {num_bytes:,} bytes, and the file ends after {file_bytes:,}")
        return _parse_head(start[_FRAME.size :][:length], length, num_bytes, offset)
    payload, num_bytes = _join(descriptor, offset, file_bytes)
    return _parse_head(payload, len(payload), num_bytes, offset)


def parse_image(frames: bytes, offset: int = 0) -> bytes:
    """The encoded image of one record.

    Args:
        frames: the record as it stands in the file, `RecordHead.num_bytes` of it.
        offset: where that is, for messages.

    Raises:
        RecordError: they are not one whole image record.
    """
    parts: list[bytes] = []
    place = 0
    while True:
        continued, length = _parse_frame(frames[place : place + _FRAME.size], offset + place)
        _check_order(continued, is_first=not parts, offset=offset + place)
        parts.append(frames[place + _FRAME.size :][:length])
        place += _FRAME.size + _padded(length)
        if place > len(frames):
            raise RecordError(offset, "the record is cut off")
        if continued in (_WHOLE, _LAST):
            break
    payload = _MAGIC.join(parts)
    head = _parse_head(payload, len(payload), place, offset)
    return payload[len(payload) - head.image_bytes :]


def scan(descriptor: int, file_bytes: int) -> Iterator[tuple[int, RecordHead]]:
    """Offset and head of each record, found by going from one to the next.

    Raises:
        RecordError: the file is not a chain of image records from its first byte to its last.
        OSError: the disk or the network fails.
    """
    offset = 0
    while offset < file_bytes:
        head = read_head(descriptor, offset, file_bytes)
        yield offset, head
        offset += head.num_bytes


def write_image_record(file: IO[bytes], labels: float | tuple[float, float], record_id: int, image: bytes = b"") -> int:
    """Write one record; returns the number of bytes written.

    Args:
        file: open for writing.
        labels: one for an image; two for key 0 and for an identity's record.
        record_id: the record's key.
        image: the encoded image.
    """
    if isinstance(labels, tuple):
        header = _HEADER.pack(len(labels), 0.0, record_id, 0) + struct.pack(f"<{len(labels)}f", *labels)
    else:
        header = _HEADER.pack(0, labels, record_id, 0)
    frames = _frame(header + image)
    file.write(frames)
    return len(frames)


def _frame(payload: bytes) -> bytes:
    """Framed as dmlc-core's `RecordIOWriter::WriteRecord` does."""
    cuts, place = [], payload.find(_MAGIC)
    while place >= 0:
        if place % 4 == 0:
            cuts.append(place)
        place = payload.find(_MAGIC, place + len(_MAGIC))  # its bytes differ, so it cannot overlap itself
    frames = []
    start = 0
    for number, end in enumerate([*cuts, len(payload)]):
        is_last = number == len(cuts)
        continued = (_LAST if cuts else _WHOLE) if is_last else (_MIDDLE if number else _FIRST)
        part = payload[start:end]
        assert len(part) < 2**_LENGTH_BITS, "a record is shorter than 512 MiB"
        frames += [_FRAME.pack(_MAGIC, continued << _LENGTH_BITS | len(part)), part, bytes(-len(part) % 4)]
        start = end + len(_MAGIC)
    return b"".join(frames)


def _join(descriptor: int, offset: int, file_bytes: int) -> tuple[bytes, int]:
    """The payload of a split record, put together, and its length in the file."""
    parts: list[bytes] = []
    place, total = offset, 0
    while True:
        continued, length = _parse_frame(os.pread(descriptor, _FRAME.size, place), place)
        _check_order(continued, is_first=not parts, offset=place)
        total += length + _FRAME.size
        if total > _MAX_RECORD_BYTES:
            raise RecordError(offset, f"a record of more than {_MAX_RECORD_BYTES:,} bytes")
        if place + _FRAME.size + _padded(length) > file_bytes:
            raise RecordError(offset, "the record is cut off")
        parts.append(os.pread(descriptor, length, place + _FRAME.size))
        place += _FRAME.size + _padded(length)
        if continued in (_WHOLE, _LAST):
            return _MAGIC.join(parts), place - offset


def _parse_frame(data: bytes, offset: int) -> tuple[int, int]:
    """Continuation flag and length."""
    if len(data) < _FRAME.size:
        raise RecordError(offset, "the record is cut off")
    magic, word = _FRAME.unpack_from(data)
    if magic != _MAGIC:
        raise RecordError(offset, f"no record begins here (found {magic.hex()}, expected {_MAGIC.hex()})")
    continued, length = word >> _LENGTH_BITS, word & (2**_LENGTH_BITS - 1)
    if continued > _LAST:
        raise RecordError(offset, f"continuation flag {continued}, expected 0 to 3")
    if length > _MAX_RECORD_BYTES:
        raise RecordError(offset, f"a record of {length:,} bytes, expected at most {_MAX_RECORD_BYTES:,}")
    return continued, length


def _check_order(continued: int, is_first: bool, offset: int) -> None:
    if is_first != (continued in (_WHOLE, _FIRST)):
        where = "at the start of a record" if is_first else "inside a split record"
        raise RecordError(offset, f"continuation flag {continued} {where}")


def _parse_head(payload: bytes, payload_bytes: int, num_bytes: int, offset: int) -> RecordHead:
    """Parse the beginning of a payload that is `payload_bytes` long."""
    if payload_bytes < _HEADER.size:
        raise RecordError(offset, f"a record of {payload_bytes} bytes, too short for an image's header")
    flag, label, record_id, _ = _HEADER.unpack_from(payload)
    image_bytes = payload_bytes - _HEADER.size - 4 * flag
    if image_bytes < 0:
        raise RecordError(offset, f"a record of {payload_bytes:,} bytes that claims {flag:,} labels")
    count = min(flag, _NUM_LABELS_READ)
    labels = struct.unpack_from(f"<{count}f", payload, _HEADER.size) if flag else (label,)
    return RecordHead(num_bytes, flag, labels, record_id, image_bytes)


def _padded(length: int) -> int:
    return length + -length % 4
