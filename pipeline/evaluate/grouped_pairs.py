"""Pairs of photos with groups of people: a CSV file with a header.

Columns `left_identity`, `left_number`, `right_identity` and `right_number` name the photos as pair lists do. Each other
column is a group: `left_NAME` and `right_NAME` those of the two photos, `NAME` alone that of both. A pair of which a
photo's is empty is in no group.

    left_identity,left_number,right_identity,right_number,left_age,right_age,set
    Ann,1,Ann,4,young,old,A
    Ann,1,Bo,2,young,young,A

Instead, `left_path` and `right_path` may name files of a folder. `same`, 1 or 0, then says whether they show one
person; or `left_identity` and `right_identity` do, and intervals know whom to draw. Groups may then be left out.

    left_path,right_path,same,camera
    gate/0001.jpg,desk/0417.jpg,1,new
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.config.errors import UserError
from pipeline.evaluate.pairs import Pair, PairList, Photo, inner_path

_NUMBER_COLUMNS = ("left_identity", "left_number", "right_identity", "right_number")
_PATH_COLUMNS = ("left_path", "right_path")
_IDENTITY_COLUMNS = ("left_identity", "right_identity")
_LABEL_COLUMN = "same"


@dataclass(frozen=True)
class Groups:
    """One way to group photos; the groups of each pair's two photos."""

    left: list[str]
    right: list[str]

    def at(self, place: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.str_], npt.NDArray[np.str_]]:
        """The groups of some pairs' two photos, by the pairs' places."""
        return np.array(self.left, str)[place], np.array(self.right, str)[place]


@dataclass(frozen=True)
class GroupedPairs:
    """Pairs of one fold, in the file's order, and their groups by name."""

    pairs: PairList
    groups: dict[str, Groups]

    @property
    def are_paths(self) -> bool:
        """Whether photos go by path."""
        return bool(self.pairs.pairs[0].left.path)

    @property
    def knows_people(self) -> bool:
        """Whether it is known who is on the photos."""
        return self.pairs.pairs[0].label is None


def read_grouped_pairs(path: Path) -> GroupedPairs:
    """Read pairs with groups; see this module's head.

    Raises:
        UserError: no such file, not UTF-8, columns missing or doubled, a column without a group, or a malformed line,
            by its number.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UserError(path, f"unreadable ({reason})", "a CSV file of pairs with groups") from None
    rows = csv.reader(text.splitlines())
    header = next(rows, [])
    photo_columns = _photo_columns(path, header)
    columns = _columns(path, header, photo_columns)
    pairs: list[Pair] = []
    groups: dict[str, Groups] = {name: Groups([], []) for name in columns}
    for row in rows:
        if not row:
            continue
        where = f"{path}:{rows.line_num}"
        if len(row) != len(header):
            raise UserError(where, f"{len(row)} fields", f"{len(header)}, as in the first line")
        named = {name: row[header.index(name)] for name in photo_columns}
        pairs.append(_path_pair(named, where) if "left_path" in named else _number_pair(named, where))
        for name, (left_column, right_column) in columns.items():
            groups[name].left.append(row[left_column].strip())
            groups[name].right.append(row[right_column].strip())
    if not pairs:
        raise UserError(path, "no pairs", "a line a pair after the header")
    grouped = GroupedPairs(PairList(pairs, 1), groups)
    for name, missing in _count_ungrouped(grouped).items():
        if missing == len(pairs):
            raise UserError(path, f"no pair with a group in column {name!r}", "groups, or no such column")
    return grouped


def ungrouped_notes(grouped: GroupedPairs) -> list[str]:
    """How many pairs have no group; empty where all have one."""
    total = len(grouped.pairs.pairs)
    counts = [(name, missing) for name, missing in _count_ungrouped(grouped).items() if missing]
    if not counts:
        return []
    (name, missing), *others = counts
    listed = f"column {name!r} there are {missing:,} of {total:,} pairs"
    more = "".join(f", and in column {name!r} {missing:,}" for name, missing in others)
    return [f"Without a group in {listed}{more}: they count among all pairs only."]


def _count_ungrouped(grouped: GroupedPairs) -> dict[str, int]:
    """By group column, the pairs of which a photo has none."""
    return {
        name: sum(not (left and right) for left, right in zip(sides.left, sides.right, strict=True))
        for name, sides in grouped.groups.items()
    }


def _photo_columns(path: Path, header: Sequence[str]) -> tuple[str, ...]:
    """The columns that name photos and people."""
    wanted = _NUMBER_COLUMNS
    if any(name in header for name in _PATH_COLUMNS):
        has_identities = all(name in header for name in _IDENTITY_COLUMNS)
        wanted = (*_PATH_COLUMNS, *(_IDENTITY_COLUMNS if has_identities else (_LABEL_COLUMN,)))
    if _LABEL_COLUMN in header and _LABEL_COLUMN not in wanted:
        # As a group it would be read by nobody as what it says.
        raise UserError(path, f"both {_LABEL_COLUMN!r} and identities in its first line", "one of them")
    for name in wanted:
        if header.count(name) != 1:
            found = f"column {name!r} stands {header.count(name)} times in its first line"
            expected = f"once each {', '.join(wanted)}, and columns of groups"
            remedy = "left_path, right_path and same (1 or 0) name files" if wanted == _NUMBER_COLUMNS else ""
            raise UserError(path, found, expected, remedy)
    return wanted


def _columns(path: Path, header: Sequence[str], photo_columns: Sequence[str]) -> dict[str, tuple[int, int]]:
    """The columns of each group's name, left and right."""
    columns: dict[str, tuple[int, int]] = {}
    for place, title in enumerate(header):
        if title in photo_columns:
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
    if not columns and "left_path" not in photo_columns:
        raise UserError(path, "no column of groups", "one beside those of the photos")
    return columns


def _number_pair(named: Mapping[str, str], where: str) -> Pair:
    photos = []
    for side in ("left", "right"):
        identity, number = named[f"{side}_identity"], named[f"{side}_number"]
        if not identity:
            raise UserError(where, f"no {side}_identity", "a name")
        if not (number.isascii() and number.isdigit() and int(number) > 0):
            raise UserError(where, f"{side}_number {number!r}", "a whole number from 1")
        photos.append(Photo(identity, int(number)))
    return _pair(photos[0], photos[1], None, where)


def _path_pair(named: Mapping[str, str], where: str) -> Pair:
    photos = []
    for side in ("left", "right"):
        path = inner_path(named[f"{side}_path"], where)
        # Without names, each photo has a person of its own, and the label says what the pair is.
        identity = named.get(f"{side}_identity", path)
        if not identity:
            raise UserError(where, f"no {side}_identity", "a name")
        photos.append(Photo(identity, 0, path))
    label = named.get(_LABEL_COLUMN)
    if label not in (None, "0", "1"):
        raise UserError(where, f"same {label!r}", "1 for one person, 0 for two")
    return _pair(photos[0], photos[1], None if label is None else label == "1", where)


def _pair(left: Photo, right: Photo, label: bool | None, where: str) -> Pair:
    if left == right or (left.path and left.path == right.path):
        raise UserError(where, f"{left} is paired with itself", "two different photos")
    return Pair(left, right, 0, label)
