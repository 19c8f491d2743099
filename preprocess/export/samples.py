"""The samples of a split in the order of its people, checked as they are read."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.config.errors import UserError
from pipeline.data.manifest import SplitIndex
from preprocess.sources.store import OpenFiles, read_part

_MAX_OPEN_SHARDS = 64


class Sample(NamedTuple):
    """One photo of the data set."""

    label: int
    """0 … number of identities - 1, see `Samples`."""
    identity: str
    key: str
    num_bytes: int
    """Of its JPEG."""
    crc32: int
    row: int
    """In the split's index."""


class Samples:
    """A split's photos by label, then by key.

    Labels number the people who have photos. Where all are called by numbers (as those of a `.rec` file are) they stand
    in the order of the numbers, so that a set whose numbers have no gaps keeps its own; else in the order of the data
    set's labels, that of the names.
    """

    def __init__(self, split: SplitIndex, crop_px: int) -> None:
        self.crop_px = crop_px
        self.where = split.root
        self.origin = f"{split.digest[:16]}-{split.split}"
        self._split = split
        self._keys = split.manifest(["key"])["key"]
        names = split.identities()
        order = _order(names)
        self.identities = [names[i] for i in order]
        rank = np.empty(len(names), np.int64)
        rank[order] = np.arange(len(names))
        self._labels: npt.NDArray[np.int64] = rank[split.label]
        self._rows = np.lexsort((split.sample_id, self._labels))
        self._tars: OpenFiles[int] = OpenFiles(_open, os.close, _MAX_OPEN_SHARDS)

    def __len__(self) -> int:
        return len(self._split)

    def __iter__(self) -> Iterator[Sample]:
        split = self._split
        for row in self._rows.tolist():
            label = int(self._labels[row])
            size, crc32 = int(split.jpg_size[row]), int(split.jpg_crc32[row])
            yield Sample(label, self.identities[label], self._keys[row].as_py(), size, crc32, row)

    def jpeg(self, sample: Sample) -> bytes:
        """A sample's JPEG.

        Raises:
            UserError: it cannot be read or does not match its CRC.
        """
        path = self._split.shards[int(self._split.shard[sample.row])]
        assert isinstance(path, Path), "a URL is refused before"
        data = read_part(self._tars.get(str(path)), int(self._split.jpg_offset[sample.row]), sample.num_bytes, path)
        if len(data) != sample.num_bytes or zlib.crc32(data) != sample.crc32:
            raise UserError(path, f"key {sample.key} is damaged", "", f"preprocess verify {self.where}")
        return data


def _order(names: list[str]) -> list[int]:
    """Places of the names in the order of labels."""
    if all(re.fullmatch("0|[1-9][0-9]{0,17}", name) for name in names):
        return sorted(range(len(names)), key=lambda place: int(names[place]))
    return list(range(len(names)))


def _open(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
