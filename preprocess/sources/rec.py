"""InsightFace's training sets: `train.rec` with `train.idx` and `property` beside it."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.config.errors import UserError
from preprocess.photo import Reject
from preprocess.recordio import MAX_EXACT_LABEL, RecordError, RecordHead, parse_image, read_head, scan
from preprocess.sources.listing import OnBytes, Rows
from preprocess.sources.store import ContainerPhotos, PhotoStore, Place, container_stamp, read_part
from preprocess.storage import storage_error

_IDX_LINE = re.compile(rb"([0-9]{1,18})\t([0-9]{1,18})\r?\n?")
_MAX_IDX_LINE_BYTES = 64
_DOWNLOAD = "fetch the file again, or name the folder of a whole one"


@dataclass(frozen=True)
class RecordPhotos(ContainerPhotos):
    """Photos in RecordIO, addressed as `train.rec#KEY`."""

    def container_of(self, source: str) -> str:
        return source.rpartition("#")[0]

    def read(self, place: Place) -> bytes:
        assert place.offset is not None
        assert place.num_bytes is not None
        name = self.container_of(place.source)
        frames = read_part(self.open_container(name), place.offset, place.num_bytes, self.root / name)
        try:
            return parse_image(frames, place.offset)
        except RecordError:  # it was one when it was listed
            raise Reject("corrupt") from None


@dataclass(frozen=True)
class RecordSource:
    """A `.rec` file to be listed."""

    path: Path

    @property
    def where(self) -> Path:
        return self.path

    @property
    def num_bytes(self) -> int:
        return container_stamp(self.path).num_bytes

    def photos(self) -> PhotoStore:
        return RecordPhotos(self.path.parent, {self.path.name: container_stamp(self.path)})

    def list_rows(self, on_bytes: OnBytes) -> tuple[pa.Table, list[str]]:
        """One row an image, in the order of keys; the identity is the label's number.

        Raises:
            UserError: the file or its index is damaged, or a label is not a number that float32 holds exactly.
        """
        rows = Rows()
        header = _HeaderRecord(None)
        num_identity_records = 0
        spans: list[tuple[int, int]] = []
        with open(self.path, "rb") as file:
            records, notes = self._records(file.fileno())
            for key, offset, head in records:
                spans.append((offset, head.num_bytes))
                if len(spans) % 4096 == 0:
                    on_bytes(offset)
                if key == 0 and head.flag == 2 and head.image_bytes == 0:
                    header = _HeaderRecord(head.labels)
                elif header.is_identity(key, head):
                    num_identity_records += 1
                else:
                    rows.add(
                        f"{self.path.name}#{key}",
                        self._identity(key, head),
                        problem="" if head.image_bytes else "empty_file",
                        offset=offset,
                        num_bytes=head.num_bytes,
                    )
        _check_covered(self.path, np.array(sorted(spans), np.int64).reshape(-1, 2), self.num_bytes)
        if num_identity_records:
            notes.append(f"{self.path.name}: {num_identity_records:,} records of identities, which hold no photo")
        if header.num_identities not in (None, num_identity_records):
            notes.append(f"{self.path.name}: its first record counts {header.num_identities:,} identities")
        return rows.table(), [*notes, *self._check_property(rows), *self._others()]

    def _records(self, descriptor: int) -> tuple[Iterator[tuple[int, int, RecordHead]], list[str]]:
        """Key, offset and head of each record, by rising key."""
        idx = self.path.with_suffix(".idx")
        try:
            keys, offsets = read_idx(idx)
        except FileNotFoundError:
            note = f"{idx.name} is missing: keys were found by going through {self.path.name}"
            return iter(self._scan(descriptor)), [note]
        except OSError as error:
            raise storage_error(idx, "cannot be read", error) from None
        return self._indexed(descriptor, keys, offsets), []

    def _indexed(
        self, descriptor: int, keys: npt.NDArray[np.int64], offsets: npt.NDArray[np.int64]
    ) -> Iterator[tuple[int, int, RecordHead]]:
        size = self.num_bytes
        order = np.argsort(keys, kind="stable")
        for key, offset in zip(keys[order].tolist(), offsets[order].tolist(), strict=True):
            yield key, offset, self._head(descriptor, key, offset, size)

    def _scan(self, descriptor: int) -> list[tuple[int, int, RecordHead]]:
        """Without an index, a record's id is its key; InsightFace and MXNet write it so."""
        try:
            records = [(head.id, offset, head) for offset, head in scan(descriptor, self.num_bytes)]
        except RecordError as error:
            raise UserError(self.path, str(error), "a whole RecordIO file", _DOWNLOAD) from None
        except OSError as error:
            raise storage_error(self.path, "cannot be read", error) from None
        repeated = [key for key, count in Counter(key for key, _, _ in records).items() if count > 1]
        if repeated:
            found = f"{len(repeated):,} ids stand in several records, such as {min(repeated)}"
            raise UserError(self.path, found, "one id a record", f"bring {self.path.with_suffix('.idx').name} along")
        return sorted(records)

    def _head(self, descriptor: int, key: int, offset: int, size: int) -> RecordHead:
        try:
            return read_head(descriptor, offset, size)
        except RecordError as error:
            remedy = f"{_DOWNLOAD}; where only {self.path.with_suffix('.idx').name} is wrong, delete it"
            raise UserError(self.path, f"record {key}: {error}", "a whole record", remedy) from None
        except OSError as error:
            raise storage_error(self.path, "cannot be read", error) from None

    def _identity(self, key: int, head: RecordHead) -> str:
        label = head.labels[0]
        if label >= MAX_EXACT_LABEL:
            found = (
                f"record {key} has label {label:.0f}, and float32 cannot tell labels from {MAX_EXACT_LABEL:,} on apart"
            )
            raise UserError(self.path, found, "labels below that", "shard the photos from a list instead")
        if not (label >= 0 and label == int(label)):  # also nan
            raise UserError(self.path, f"record {key} has label {label}", "a whole number from 0")
        return str(int(label))

    def _check_property(self, rows: Rows) -> list[str]:
        """`property` holds CLASSES,HEIGHT,WIDTH."""
        try:
            with open(self.path.with_name("property"), "rb") as file:
                text = file.read(256).decode()
            classes = int(text.split(",")[0])
        except (OSError, ValueError):
            return []
        found = rows.num_identities
        return [] if classes == found else [f"property counts {classes:,} identities, the photos are of {found:,}"]

    def _others(self) -> list[str]:
        others = sorted(path.name for path in self.path.parent.glob("*.bin"))
        if not others:
            return []
        return [f"passed over {', '.join(others)}: verification sets, see `preprocess import-bin`"]


class _HeaderRecord(NamedTuple):
    """Key 0 of InsightFace: the identities' records are those from the first label to the second."""

    labels: tuple[float, ...] | None

    @property
    def is_exact(self) -> bool:
        """Whether the numbers can be trusted: they are float32, and sets of more photos than 2**24 exist."""
        return self.labels is not None and all(0 <= label < MAX_EXACT_LABEL for label in self.labels)

    @property
    def num_identities(self) -> int | None:
        return int(self.labels[1] - self.labels[0]) if self.labels and self.is_exact else None

    def is_identity(self, key: int, head: RecordHead) -> bool:
        """Whether a record describes an identity. Where the numbers are of no use, its having no image decides."""
        if head.flag != 2 or head.image_bytes:
            return False
        return self.labels is None or not self.is_exact or self.labels[0] <= key < self.labels[1]


def read_idx(path: Path) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Keys and offsets of a `.idx` file, [N] int64 each, in its order.

    Raises:
        UserError: a line that is not `KEY<TAB>OFFSET`, or a key or an offset twice.
        OSError: it is missing or cannot be read.
    """
    with open(path, "rb") as file:
        pairs = np.fromiter(_idx_pairs(path, iter(lambda: file.readline(_MAX_IDX_LINE_BYTES), b"")), np.dtype("2i8"))
    if len(pairs) == 0:
        raise UserError(path, "empty", "lines of KEY<TAB>OFFSET", "delete it: the keys are in the .rec file too")
    for column, name in enumerate(("key", "offset")):
        ordered = np.sort(pairs[:, column])
        repeated = ordered[1:][ordered[1:] == ordered[:-1]]
        if len(repeated):
            found = f"{name} {repeated[0]} stands in several lines"
            raise UserError(path, found, f"each {name} once", "delete it: the keys are in the .rec file too")
    return pairs[:, 0], pairs[:, 1]


def _idx_pairs(path: Path, lines: Iterable[bytes]) -> Iterator[tuple[int, int]]:
    for number, line in enumerate(lines, start=1):
        match = _IDX_LINE.fullmatch(line)
        if match is None:
            raise UserError(f"{path}, line {number}", repr(line.decode(errors="replace")), "KEY<TAB>OFFSET")
        yield int(match[1]), int(match[2])


def _check_covered(path: Path, spans: npt.NDArray[np.int64], size: int) -> None:
    """The records that were listed must fill the file: an index that is cut off would lose photos without a word.

    `spans` is [N, 2]: offset and length, by rising offset.
    """
    ends = spans.sum(1)
    expected = np.r_[0, ends]
    starts = np.r_[spans[:, 0], size]
    if not np.array_equal(expected, starts):
        gap = int(expected[np.flatnonzero(expected != starts)[0]])
        idx = path.with_suffix(".idx").name
        raise UserError(
            path, f"{idx} lists no record at byte {gap:,}", "one for each", f"delete {idx}, or fetch it again"
        )


def is_rec_folder(folder: Path) -> bool:
    """Whether InsightFace's files stand in a folder."""
    return any(os.path.isfile(folder / name) for name in ("train.idx", "property")) and (folder / "train.rec").is_file()
