"""Crops of some rows of a split's index, decoded ahead of whoever works on them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from pipeline.config.errors import TemporaryError
from pipeline.data.decode_cpu import decode_crop
from pipeline.data.reader import IO_ERROR, BadSample, Reader
from pipeline.read_ahead import read_ahead

Rows = npt.NDArray[np.int64]
Crops = npt.NDArray[np.uint8]


def read_row_crops(
    reader: Reader, crop_px: int, rows: Rows, batch: int, must_answer: bool = False
) -> Iterator[tuple[Rows, Crops]]:
    """Read photos in batches; one other thread reads and decodes the next batch meanwhile.

    Args:
        reader: of the split.
        crop_px: side of its crops.
        rows: [n] of the split's index.
        batch: rows a batch. It bears those of `batch` successive rows that can be read, whatever becomes of others.
        must_answer: pass over photos that are damaged, but not over those that the storage does not give, which it
            may give later.

    Yields:
        Rows [b] of which a photo could be read, and the crops, [b, S, S, 3] uint8 RGB. Batches may be empty.

    Raises:
        TemporaryError: with `must_answer`, the storage does not give a photo.
    """
    parts = [rows[first : first + batch] for first in range(0, len(rows), batch)]
    return read_ahead(lambda part: _read(reader, crop_px, part, must_answer), parts)


def _read(reader: Reader, crop_px: int, rows: Rows, must_answer: bool) -> tuple[Rows, Crops]:
    found: list[int] = []
    crops = np.empty((len(rows), crop_px, crop_px, 3), np.uint8)
    for row, content in zip(rows.tolist(), reader.read_many(rows), strict=True):
        if must_answer and isinstance(content, BadSample) and content.reason == IO_ERROR:
            raise TemporaryError(content.shard, f"cannot be read ({content.detail})", "", "repeat the same command")
        if not isinstance(content, BadSample) and decode_crop(content, crops[len(found)]) is None:
            found.append(row)
    return np.array(found, np.int64), crops[: len(found)]
