"""The file that all ranks of a node map to know a split's rows: Arrow IPC with `INDEX_SCHEMA`, derived and checked.

What it is derived from stands elsewhere, so a file that is missing, cut short or of other data is made again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.atomic_write import write_atomically
from pipeline.data.dataset_format import INDEX_SCHEMA


def open_or_build(path: Path, digest: str, build: Callable[[], pa.Table]) -> pa.Table:
    """Map an index file; where there is none that `read_index_file` accepts, build it and write it there first.

    Where the folder cannot be written to, the table stays in this process's memory.

    Args:
        path: of the file.
        digest: of the data that it must be of.
        build: gives the content, sealed by `seal_index`.
    """
    found = read_index_file(path, digest)
    if found is not None:
        return found
    table = build()
    try:
        write_atomically(path, lambda file: write_index(table, file))
    except OSError:
        return table
    return pa.ipc.open_file(pa.memory_map(str(path), "r")).read_all()


def read_index_file(path: Path, digest: str) -> pa.Table | None:
    """An index as it stands, memory-mapped; None when it is missing, truncated, foreign or of another digest.

    An older version's layout counts as foreign. Its content is not compared with the manifests here.
    """
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path), "r")).read_all()
        metadata = json.loads((table.schema.metadata or {}).get(b"facemill", b"{}"))
    except (pa.ArrowException, OSError, ValueError):
        return None
    if not isinstance(metadata, dict) or not table.schema.equals(INDEX_SCHEMA):
        return None
    if metadata.get("num_bytes") != f"{path.stat().st_size:020d}":  # Arrow maps a file that lost its middle
        return None
    return table if metadata.get("digest") == digest else None


def seal_index(table: pa.Table, digest: str, ranges: dict[str, tuple[int, int]]) -> pa.Table:
    """An index with what `read_index_file` checks: the digest, each split's first row and end, and the file's size."""

    def described(num_bytes: int) -> pa.Table:
        # always as many digits, for they count themselves
        content = {"digest": digest, "ranges": ranges, "num_bytes": f"{num_bytes:020d}"}
        return table.replace_schema_metadata({"facemill": json.dumps(content, sort_keys=True)})

    counter = pa.MockOutputStream()
    write_index(described(0), counter)
    return described(counter.size())


def write_index(table: pa.Table, sink: pa.NativeFile | IO[bytes]) -> None:
    """Lay an index down as one stretch a column, as it will be mapped."""
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def index_columns(table: pa.Table, split: str) -> dict[str, npt.NDArray[Any]]:
    """The columns of a split's rows by name, views of the table."""
    start, stop = json.loads(table.schema.metadata[b"facemill"])["ranges"][split]
    rows = table.slice(start, stop - start)
    return {column.name: _as_numpy(rows[column.name], column.type.to_pandas_dtype()) for column in INDEX_SCHEMA}


def _as_numpy(column: pa.ChunkedArray, dtype: type) -> npt.NDArray[Any]:
    """A zero-copy view of a column that the writer laid down as one chunk."""
    if column.num_chunks == 0:
        return np.empty(0, dtype)
    return column.chunk(0).to_numpy(zero_copy_only=True)
