"""The table that every source is listed as."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import pyarrow as pa

LISTING_SCHEMA = pa.schema(
    [
        ("source", pa.string()),  # relative to the source root with "/", or absolute where a list says so
        ("identity", pa.string()),
        ("bbox", pa.list_(pa.float32(), 4)),  # null unless a list gives it
        ("landmarks", pa.list_(pa.float32(), 10)),
        ("problem", pa.string()),  # why the row is a reject before it is read; empty for nearly all
    ]
)

PLACE_SCHEMA = pa.schema(
    [
        ("offset", pa.int64()),  # where the photo's part of its container begins
        ("num_bytes", pa.int64()),  # of that part
    ]
)
"""Columns that photos have besides where they are byte ranges of a container."""

OnBytes: TypeAlias = Callable[[int], None]
"""Told how many bytes of the containers have been gone through."""


class Rows:
    """Collects a listing's rows."""

    def __init__(self) -> None:
        self._columns: dict[str, list[Any]] = {name: [] for name in (*LISTING_SCHEMA.names, *PLACE_SCHEMA.names)}

    def __len__(self) -> int:
        return len(self._columns["source"])

    @property
    def num_identities(self) -> int:
        """How many people there are so far."""
        return len(set(self._columns["identity"]))

    def add(
        self,
        source: str,
        identity: str,
        *,
        bbox: Sequence[float] | None = None,
        landmarks: Sequence[float] | None = None,
        problem: str = "",
        offset: int | None = None,
        num_bytes: int | None = None,
    ) -> None:
        """Add a photo; see the two schemas for the columns."""
        values = (source, identity, bbox, landmarks, problem, offset, num_bytes)
        for column, value in zip(self._columns.values(), values, strict=True):
            column.append(value)

    def table(self, order: Sequence[int] | None = None) -> pa.Table:
        """The rows, as they were added or in another order. Places are left out where no row has one."""
        has_places = any(offset is not None for offset in self._columns["offset"])
        schema = pa.schema([*LISTING_SCHEMA, *PLACE_SCHEMA]) if has_places else LISTING_SCHEMA
        table = pa.table({name: pa.array(self._columns[name], schema.field(name).type) for name in schema.names})
        return table if order is None else table.take(pa.array(order, pa.int64()))

    def sorted_by_source(self) -> pa.Table:
        """By the sources' bytes, then as they were added."""
        sources = [source.encode() for source in self._columns["source"]]
        return self.table(sorted(range(len(sources)), key=sources.__getitem__))
