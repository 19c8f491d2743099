"""A list of photos: CSV or Parquet with the columns `path` and `identity`, and optionally `bbox` and `landmarks`.

Paths are absolute or start from the list's folder. `bbox` is x0, y0, x1, y1 in px of the upright photo and says which
face is meant; `landmarks` are five x, y pairs that are used instead of detection. In CSV the numbers of a cell are
separated by blanks or semicolons; in Parquet they are lists.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from pipeline.config.errors import UserError

_NUMBERS = {"bbox": 4, "landmarks": 10}


def read_list(path: Path) -> tuple[pa.Table, list[str]]:
    """Read a list as a table with `LISTING_SCHEMA`, sorted by path and then by the order in the list.

    Other columns are left alone, which the sentences returned mention.

    Raises:
        UserError: not a CSV or Parquet file, a column is missing, or a cell is empty or malformed.
    """
    from preprocess.sources import LISTING_SCHEMA

    table = _read(path)
    unknown = [name for name in table.column_names if name not in ("path", "identity", *_NUMBERS)]
    missing = [name for name in ("path", "identity") if name not in table.column_names]
    if missing:
        raise UserError(path, f"no column {missing[0]!r}", "the columns path, identity and optionally bbox, landmarks")
    notes = [f"columns not used: {', '.join(unknown)}"] if unknown else []
    rows = table.drop_columns(unknown).to_pydict()
    for name in ("path", "identity"):
        for number, value in enumerate(rows[name], start=1):
            if not isinstance(value, str | int) or value == "":
                raise UserError(f"{path}, row {number}", f"{name} is {value!r}", "text")
        rows[name] = [str(value) for value in rows[name]]
    for name, count in _NUMBERS.items():
        cells = rows.get(name, [None] * len(table))
        rows[name] = [_numbers(path, number, name, cell, count) for number, cell in enumerate(cells, start=1)]
    order = sorted(range(len(table)), key=lambda i: (rows["path"][i].encode(), i))
    rows["source"], rows["problem"] = rows.pop("path"), [""] * len(table)
    arrays = [pa.array([rows[field.name][i] for i in order], field.type) for field in LISTING_SCHEMA]
    return pa.Table.from_arrays(arrays, schema=LISTING_SCHEMA), notes


def _read(path: Path) -> pa.Table:
    try:
        if path.suffix.lower() == ".parquet":
            return pq.read_table(path)
        if path.suffix.lower() == ".csv":
            names = ("path", "identity", *_NUMBERS)
            types = {name: pa.string() for name in names}  # an identity "007" is text
            convert = pyarrow.csv.ConvertOptions(column_types=types, strings_can_be_null=False)
            return pyarrow.csv.read_csv(path, convert_options=convert)
    except (OSError, pa.ArrowException) as error:
        raise UserError(path, f"unreadable list ({str(error).splitlines()[0]})") from None
    raise UserError(path, "not a folder and not a list", "a folder of identity folders, or a .csv or .parquet list")


def _numbers(path: Path, row: int, name: str, cell: object, count: int) -> list[float] | None:
    if cell is None or cell == "":
        return None
    try:
        parts = cell.replace(";", " ").split() if isinstance(cell, str) else list(cell)  # type: ignore[call-overload]
        values = [float(part) for part in parts]
    except (TypeError, ValueError):
        values = []
    if len(values) != count:
        raise UserError(f"{path}, row {row}", f"{name} is {cell!r}", f"{count} numbers")
    return values
