"""Pairs of photos with groups of people: a CSV file with a header.

Columns `left_identity`, `left_number`, `right_identity` and `right_number` name the photos as pair lists do. Each other
column is a group: `left_NAME` and `right_NAME` those of the two photos, `NAME` alone that of both.

    left_identity,left_number,right_identity,right_number,left_age,right_age,set
    Ann,1,Ann,4,young,old,A
    Ann,1,Bo,2,young,young,A
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.errors import UserError
from pipeline.evaluate.pairs import Pair, PairList, Photo

_PHOTO_COLUMNS = ("left_identity", "left_number", "right_identity", "right_number")


@dataclass(frozen=True)
class Groups:
    """One way to group photos; the groups of each pair's two photos."""

    left: list[str]
    right: list[str]


@dataclass(frozen=True)
class GroupedPairs:
    """Pairs of one fold, in the file's order, and their groups by name."""

    pairs: PairList
    groups: dict[str, Groups]


def read_grouped_pairs(path: Path) -> GroupedPairs:
    """Read pairs with groups; see this module's head.

    Raises:
        UserError: no such file, not UTF-8, columns missing or doubled, no group, or a malformed line, by its number.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UserError(path, f"unreadable ({reason})", "a CSV file of pairs with groups") from None
    rows = csv.reader(text.splitlines())
    header = next(rows, [])
    columns = _columns(path, header)
    pairs: list[Pair] = []
    groups: dict[str, Groups] = {name: Groups([], []) for name in columns}
    for row in rows:
        if not row:
            continue
        where = f"{path}:{rows.line_num}"
        if len(row) != len(header):
            raise UserError(where, f"{len(row)} fields", f"{len(header)}, as in the first line")
        left, right = (_photo(row, header, side, where) for side in ("left", "right"))
        if left == right:
            raise UserError(where, f"{left} is paired with itself", "two different photos")
        pairs.append(Pair(left, right, 0))
        for name, (left_column, right_column) in columns.items():
            groups[name].left.append(row[left_column])
            groups[name].right.append(row[right_column])
    if not pairs:
        raise UserError(path, "no pairs", "a line a pair after the header")
    return GroupedPairs(PairList(pairs, 1), groups)


def _columns(path: Path, header: Sequence[str]) -> dict[str, tuple[int, int]]:
    """The columns of each group's name, left and right."""
    for name in _PHOTO_COLUMNS:
        if header.count(name) != 1:
            found = f"column {name!r} stands {header.count(name)} times in its first line"
            raise UserError(path, found, f"once each {', '.join(_PHOTO_COLUMNS)}, and columns of groups")
    columns: dict[str, tuple[int, int]] = {}
    for place, title in enumerate(header):
        if title in _PHOTO_COLUMNS:
            continue
        side, _, rest = title.partition("_")
        name, is_side = (rest, True) if side in ("left", "right") and rest else (title, False)
        if header.count(title) > 1 or (is_side and name in header):
            raise UserError(path, f"group {name!r} stands more than once in its first line", "each group once")
        other = f"{'right' if side == 'left' else 'left'}_{rest}"
        if is_side and other not in header:
            raise UserError(path, f"column {title!r} without {other!r}", "both, or one column for both photos")
        if not is_side:
            columns[name] = (place, place)
        elif side == "left":
            columns[name] = (place, header.index(other))
    if not columns:
        raise UserError(path, "no column of groups", "one beside those of the photos")
    return columns


def _photo(row: Sequence[str], header: Sequence[str], side: str, where: str) -> Photo:
    identity, number = row[header.index(f"{side}_identity")], row[header.index(f"{side}_number")]
    if not identity:
        raise UserError(where, f"no {side}_identity", "a name")
    if not (number.isascii() and number.isdigit() and int(number) > 0):
        raise UserError(where, f"{side}_number {number!r}", "a whole number from 1")
    return Photo(identity, int(number))
