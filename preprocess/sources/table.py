"""A list of photos: CSV or Parquet with the columns `path` and `identity`, and optionally `bbox` and `landmarks`.

Paths are absolute or start from the list's folder. `bbox` is x0, y0, x1, y1 in px of the upright photo and says which
face is meant; `landmarks` are five x, y pairs that are used instead of detection. In CSV the numbers of a cell are
separated by blanks or semicolons; in Parquet they are lists.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from pipeline.config.errors import UserError
from preprocess.sources.listing import LISTING_SCHEMA

NUMBERS = {"bbox": 4, "landmarks": 10}
"""Columns of numbers, and how many stand in a cell."""


def read_list(path: Path) -> tuple[pa.Table, list[str]]:
    """Read a list as a table with `LISTING_SCHEMA`, sorted by path and then by the order in the list.

    Other columns are left alone, which the sentences returned mention.

    Raises:
        UserError: not the CSV or Parquet that its name says, a column is missing, or a cell is empty or malformed.
    """
    rows, unknown = _read(path)
    num_rows = len(rows["path"])
    notes = [f"columns not used: {', '.join(unknown)}"] if unknown else []
    for name in ("path", "identity"):
        for number, value in enumerate(rows[name], start=1):
            if not isinstance(value, str | int) or value == "":
                raise UserError(f"{path}, row {number}", f"{name} is {value!r}", "text")
        rows[name] = [str(value) for value in rows[name]]
    for name in NUMBERS:
        cells = rows.get(name, [None] * num_rows)
        rows[name] = [parse_numbers(f"{path}, row {number}", name, cell) for number, cell in enumerate(cells, start=1)]
    order = sorted(range(num_rows), key=lambda i: (rows["path"][i].encode(), i))
    rows["source"], rows["problem"] = rows.pop("path"), [""] * num_rows
    arrays = [pa.array([rows[field.name][i] for i in order], field.type) for field in LISTING_SCHEMA]
    return pa.Table.from_arrays(arrays, schema=LISTING_SCHEMA), notes


def _read(path: Path) -> tuple[dict[str, list[Any]], list[str]]:
    """The columns that are used, and the names of the others."""
    known = ("path", "identity", *NUMBERS)
    try:
        if path.suffix.lower() == ".parquet":
            table = pq.read_table(path)
        else:
            types = {name: pa.string() for name in known}  # an identity "007" is text
            convert = pyarrow.csv.ConvertOptions(column_types=types, strings_can_be_null=False)
            table = pyarrow.csv.read_csv(path, convert_options=convert)
        names = table.column_names
        for name in known:
            if names.count(name) > 1:
                raise UserError(path, f"{names.count(name)} columns {name!r}", "one")
            if name not in names and name not in NUMBERS:
                raise UserError(
                    path, f"no column {name!r}", "the columns path, identity and optionally bbox, landmarks"
                )
        return table.select([name for name in names if name in known]).to_pydict(), [n for n in names if n not in known]
    except UnicodeDecodeError:
        raise UserError(path, "unreadable list (text that is not UTF-8)", "UTF-8") from None
    except (OSError, pa.ArrowException) as error:
        raise UserError(path, f"unreadable list ({str(error).splitlines()[0]})") from None


def parse_numbers(where: str, name: str, cell: object) -> list[float] | None:
    """The numbers of a cell of the column `name`, one of `NUMBERS`; None where it is empty.

    Raises:
        UserError: not numbers, or not so many; it names `where`.
    """
    if cell is None or cell == "":
        return None
    try:
        parts = cell.replace(";", " ").split() if isinstance(cell, str) else list(cell)  # type: ignore[call-overload]
        values = [float(part) for part in parts]
    except (TypeError, ValueError):
        values = []
    if len(values) != NUMBERS[name]:
        raise UserError(where, f"{name} is {cell!r}", f"{NUMBERS[name]} numbers")
    return values
