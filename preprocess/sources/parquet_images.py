"""Parquet files with the photos' bytes in a column, as Hugging Face `datasets` writes them.

The column is `image` or `bytes`: binary, or a struct with the field `bytes`. The person stands in `identity` or
`label`; numbers that Hugging Face's schema names (`ClassLabel`) become those names. `bbox` and `landmarks` are as in
lists.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.config.errors import UserError
from preprocess.photo import Reject
from preprocess.sources.listing import OnBytes, Rows
from preprocess.sources.store import (
    ContainerFiles,
    ContainerPhotos,
    OpenFiles,
    PhotoStore,
    Place,
    Stamp,
    changed_error,
    container_stamp,
)
from preprocess.sources.table import NUMBERS, parse_numbers

MAX_ROW_GROUP_BYTES = 64 * 2**20
"""Of the photos' column. A photo is read with its whole row group, because pages cannot be read alone."""
_IMAGE_COLUMNS = ("image", "bytes")
_IDENTITY_COLUMNS = ("identity", "label")
_NUM_KEPT_GROUPS = 4
_NUM_OPEN_FILES = 16


@dataclass(frozen=True)
class ParquetPhotos(ContainerPhotos):
    """Photos in Parquet, addressed as `part.parquet#ROW`, rows counted from 0."""

    def container_of(self, source: str) -> str:
        return source.rpartition("#")[0]

    def read(self, place: Place) -> bytes:
        name, _, row = place.source.rpartition("#")
        path = self.root / name
        if container_stamp(path) != self.stamps.get(name, container_stamp(path)):
            raise changed_error(path)
        try:
            data = _opened.get(str(path)).photo(int(row), container_stamp(path))
        except (OSError, pa.ArrowException) as error:
            raise UserError(path, f"cannot be read ({_first_line(error)})", remedy="fetch the file again") from None
        if data is None:
            raise Reject("empty_file")
        return data


@dataclass(frozen=True)
class ParquetSource(ContainerFiles):
    """Parquet files of one folder to be listed."""

    def photos(self) -> PhotoStore:
        return ParquetPhotos(self.root, self.stamps())

    def list_rows(self, on_bytes: OnBytes) -> tuple[pa.Table, list[str]]:
        """One row a photo, by the files' names and then by their rows.

        Raises:
            UserError: a file is damaged, lacks a column, has an empty identity, or row groups that are too large.
        """
        rows = Rows()
        unused: set[str] = set()
        done = 0
        for name in sorted(self.names):
            path = self.root / name
            try:
                with pq.ParquetFile(path) as file:
                    _check_row_groups(path, file)
                    unused |= self._add(rows, name, file)
            except (OSError, pa.ArrowException) as error:
                raise UserError(path, f"unreadable Parquet ({_first_line(error)})") from None
            done += container_stamp(path).num_bytes
            on_bytes(done)
        return rows.table(), [f"columns not used: {', '.join(sorted(unused))}"] if unused else []

    def _add(self, rows: Rows, name: str, file: pq.ParquetFile) -> set[str]:
        """Add a file's rows; returns the columns that were not used."""
        path = self.root / name
        schema = file.schema_arrow
        identity_column = next((each for each in _IDENTITY_COLUMNS if each in schema.names), None)
        if identity_column is None:
            raise UserError(path, f"the columns {', '.join(schema.names)}", f"one of {', '.join(_IDENTITY_COLUMNS)}")
        class_names = _class_names(schema, identity_column)
        used = [identity_column, *(each for each in NUMBERS if each in schema.names)]
        number = 0
        for batch in file.iter_batches(batch_size=8192, columns=used):
            for row in batch.to_pylist():
                where = f"{path}, row {number}"
                bbox, landmarks = (parse_numbers(where, each, row.get(each)) for each in ("bbox", "landmarks"))
                identity = _identity(where, row[identity_column], class_names)
                rows.add(f"{name}#{number}", identity, bbox=bbox, landmarks=landmarks)
                number += 1
        return set(schema.names) - {*used, image_column(schema)}


class _OpenParquet:
    """A Parquet file of this process, with the row groups read last."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._open()

    def _open(self) -> None:
        self._stamp = container_stamp(Path(self._path))
        self._file = pq.ParquetFile(self._path)
        self._column = image_column(self._file.schema_arrow)
        self._groups: dict[int, pa.ChunkedArray] = {}
        metadata = self._file.metadata
        self._starts = [0]
        for number in range(metadata.num_row_groups):
            self._starts.append(self._starts[-1] + metadata.row_group(number).num_rows)

    def photo(self, row: int, stamp: Stamp) -> bytes | None:
        """The bytes in a row; None where there are none."""
        if stamp != self._stamp:  # opened for an earlier run, perhaps
            self._open()
        number = next(i for i, end in enumerate(self._starts[1:]) if row < end)
        if number not in self._groups:
            while len(self._groups) >= _NUM_KEPT_GROUPS:
                del self._groups[next(iter(self._groups))]
            group = self._file.read_row_group(number, columns=[self._column])[self._column]
            if pa.types.is_struct(group.type):
                group = pc.struct_field(group, "bytes")
            self._groups[number] = group
        data: bytes | None = self._groups[number][row - self._starts[number]].as_py()
        return data

    def close(self) -> None:
        self._file.close()


_opened: OpenFiles[_OpenParquet] = OpenFiles(_OpenParquet, _OpenParquet.close, _NUM_OPEN_FILES)


def image_column(schema: pa.Schema) -> str | None:
    """The column that holds the photos' bytes, or None."""
    return next(
        (name for name in _IMAGE_COLUMNS if name in schema.names and _holds_bytes(schema.field(name).type)), None
    )


def holds_images(path: Path) -> bool:
    """Whether a Parquet file has the photos' bytes in it; a list has their paths.

    Raises:
        UserError: it is no Parquet file.
    """
    try:
        return image_column(pq.read_schema(path)) is not None
    except (OSError, pa.ArrowException) as error:
        raise UserError(path, f"unreadable list ({_first_line(error)})") from None


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _holds_bytes(kind.field(place).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _check_row_groups(path: Path, file: pq.ParquetFile) -> None:
    metadata = file.metadata
    name = image_column(file.schema_arrow)
    if name is None:
        found = f"no column {' or '.join(_IMAGE_COLUMNS)} with bytes"
        raise UserError(path, found, "the photos' bytes, as in the other files of the folder")
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        columns = (group.column(i) for i in range(group.num_columns))
        size = sum(c.total_uncompressed_size for c in columns if c.path_in_schema.split(".")[0] == name)
        if size > MAX_ROW_GROUP_BYTES:
            raise UserError(
                path,
                f"row group {number} holds {size / 2**20:,.0f} MiB of photos, and each photo is read with all of it",
                f"at most {MAX_ROW_GROUP_BYTES // 2**20} MiB",
                "write the file again with pyarrow.parquet.write_table(table, path, row_group_size=100)",
            )


def _class_names(schema: pa.Schema, column: str) -> list[str]:
    """The names of a `ClassLabel`, or an empty list."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[column]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return []
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else []


def _identity(where: str, value: Any, class_names: Sequence[str]) -> str:
    if isinstance(value, int) and class_names:
        if not 0 <= value < len(class_names):
            raise UserError(where, f"label {value}", f"one of the {len(class_names)} that the schema names")
        return class_names[value]
    if not isinstance(value, int | str) or value == "":
        raise UserError(where, f"identity is {value!r}", "text or a whole number")
    return str(value)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
