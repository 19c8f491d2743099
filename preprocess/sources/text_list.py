"""Lists of photos as plain text: `PATH LABEL` a line, and the two kinds of `.lst` that face data sets come with.

- InsightFace's: `ALIGNED<TAB>PATH<TAB>LABEL`, optionally a box's four numbers and ten of landmarks (five x, five y).
- MXNet's `im2rec`: `INDEX<TAB>LABEL<TAB>PATH`.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from pipeline.config.errors import UserError
from preprocess.sources.listing import Rows
from preprocess.storage import storage_error

_MAX_LINE_CHARACTERS = 2**16
_LST_FORMS = "ALIGNED<TAB>PATH<TAB>LABEL or INDEX<TAB>LABEL<TAB>PATH"


def read_text_list(path: Path) -> tuple[pa.Table, list[str]]:
    """Read a `.txt` or `.lst` list as a table with `LISTING_SCHEMA`, sorted by path and then by the order in the list.

    Paths are absolute or start from the list's folder.

    Raises:
        UserError: unreadable, or a malformed line, named by its number.
    """
    rows = Rows()
    add = _add_lst if path.suffix.lower() == ".lst" else _add_txt
    try:
        with open(path, encoding="utf-8-sig") as file:
            for number, line in enumerate(iter(lambda: file.readline(_MAX_LINE_CHARACTERS), ""), start=1):
                if text := line.strip("\r\n"):
                    add(rows, text, f"{path}, line {number}")
    except OSError as error:
        raise storage_error(path, "unreadable list", error) from None
    except UnicodeDecodeError:
        raise UserError(path, "unreadable list (text that is not UTF-8)", "UTF-8") from None
    return rows.sorted_by_source(), []


def _add_txt(rows: Rows, line: str, where: str) -> None:
    """The label is what follows the last tab, or the last blank where there is no tab: paths may hold blanks."""
    parts = line.rsplit("\t", 1) if "\t" in line else line.rsplit(maxsplit=1)
    if len(parts) != 2 or not all(part.strip() for part in parts):
        raise UserError(where, repr(line), "PATH LABEL")
    rows.add(parts[0].strip(), parts[1].strip())


def _add_lst(rows: Rows, line: str, where: str) -> None:
    fields = [field.strip() for field in line.split("\t")]
    numbers = [_number(field) for field in fields]
    if len(fields) < 3 or numbers[0] is None or not fields[1] or not fields[2]:
        raise UserError(where, repr(line), _LST_FORMS)
    if numbers[1] is not None and numbers[2] is None and len(fields) == 3:
        rows.add(fields[2], _label(where, numbers[1]))
        return
    label, rest = numbers[2], numbers[3:]
    if label is None or len(rest) not in (0, 4, 14) or None in rest:
        raise UserError(where, repr(line), f"{_LST_FORMS}; after InsightFace's label 0, 4 or 14 numbers")
    values = [value for value in rest if value is not None]
    xs, ys = values[4:9], values[9:]
    landmarks = [number for point in zip(xs, ys, strict=True) for number in point]
    rows.add(fields[1], _label(where, label), bbox=values[:4] or None, landmarks=landmarks or None)


def _label(where: str, number: float) -> str:
    """`im2rec` writes whole numbers as 3.000000."""
    if number != number or abs(number) > 2**53 or number != int(number):
        raise UserError(where, f"label {number}", "a whole number")
    return str(int(number))


def _number(field: str) -> float | None:
    try:
        return float(field)
    except ValueError:
        return None
