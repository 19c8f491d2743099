"""Crops of some rows of a split's index, decoded ahead of whoever works on them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from pipeline.data.decode_cpu import decode_crop
from pipeline.data.reader import BadSample, Reader

Rows = npt.NDArray[np.int64]
Crops = npt.NDArray[np.uint8]


def read_row_crops(reader: Reader, crop_px: int, rows: Rows, batch: int) -> Iterator[tuple[Rows, Crops]]:
    """Read photos in batches; one other thread reads and decodes the next batch meanwhile.

    Args:
        reader: of the split.
        crop_px: side of its crops.
        rows: [n] of the split's index.
        batch: rows a batch. It bears those of `batch` successive rows that can be read, whatever becomes of others.

    Yields:
        Rows [b] of which a photo could be read, and the crops, [b, S, S, 3] uint8 RGB. Batches may be empty.
    """
    parts = [rows[first : first + batch] for first in range(0, len(rows), batch)]
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="crops") as pool:
        ahead = pool.submit(_read, reader, crop_px, parts[0]) if parts else None
        for part in [*parts[1:], None]:
            if ahead is None:
                return
            found = ahead.result()
            ahead = None if part is None else pool.submit(_read, reader, crop_px, part)
            yield found


def _read(reader: Reader, crop_px: int, rows: Rows) -> tuple[Rows, Crops]:
    found: list[int] = []
    crops = np.empty((len(rows), crop_px, crop_px, 3), np.uint8)
    for row, content in zip(rows.tolist(), reader.read_many(rows), strict=True):
        if not isinstance(content, BadSample) and decode_crop(content, crops[len(found)]) is None:
            found.append(row)
    return np.array(found, np.int64), crops[: len(found)]
