"""CFP: frontal photos against profiles (FP), and against other frontal ones (FF).

Its distribution holds `Data/Images/001/{frontal,profile}/01.jpg`, `Protocol/Pair_list_F.txt` and `Pair_list_P.txt`,
which number the photos in lines `12 ../Data/Images/002/frontal/02.jpg`, and `Protocol/Split/{FF,FP}/01/same.txt` and
`diff.txt` to `10`, whose lines `12,7` pair the numbers: of two frontal photos, or of a frontal one and a profile
(Sengupta et al. 2016, "Frontal to profile face verification in the wild").
"""

from __future__ import annotations

import posixpath
from pathlib import Path, PurePosixPath
from typing import Literal

from pipeline.config.errors import UserError
from pipeline.evaluate.pairs import NUM_FOLDS, Pair, PairList, Photo, inner_path
from pipeline.inputs.listed_pairs import ListedPairs, read_lines

MARKER = "Protocol/Pair_list_F.txt"


def read_cfp(root: Path, kind: Literal["FF", "FP"]) -> ListedPairs:
    """The pairs of one of CFP's two protocols, in its ten folds.

    Args:
        root: the folder that holds `Protocol` and `Data`.
        kind: frontal against frontal, or frontal against profile.

    Raises:
        UserError: a file is missing or not text, or a line is malformed, named by its number.
    """
    protocol = root / "Protocol"
    lists = [protocol / "Pair_list_F.txt", *([protocol / "Pair_list_P.txt"] if kind == "FP" else [])]
    photos = [_read_photos(path) for path in lists]
    left, right = photos[0], photos[-1]
    split = protocol / "Split" / kind
    pairs = []
    for fold in range(NUM_FOLDS):
        for name, same in (("same.txt", True), ("diff.txt", False)):
            path = split / f"{fold + 1:02d}" / name
            lists.append(path)
            for where, line in read_lines(path, f"CFP's {kind} pairs, lines `NUMBER,NUMBER`"):
                pairs.append(_pair(line, left, right, fold, same, where))
    return ListedPairs(PairList(pairs, NUM_FOLDS), root, lists, split)


def _read_photos(path: Path) -> dict[str, Photo]:
    """The photos by their number in the list."""
    photos: dict[str, Photo] = {}
    for where, line in read_lines(path, "CFP's list of photos, lines `NUMBER PATH`"):
        number, _, name = line.partition(" ")
        if not (number.isascii() and number.isdigit() and name):
            raise UserError(where, repr(line[:80]), "`NUMBER PATH`")
        if number in photos:
            raise UserError(where, f"number {number} once more", "each number once")
        inside = inner_path(posixpath.join("Protocol", name.strip()), where)  # paths are relative to the list
        parts = PurePosixPath(inside).parts
        if len(parts) < 3:
            raise UserError(where, f"path {name!r}", "one that ends in PERSON/KIND/PHOTO")
        photos[number] = Photo(parts[-3], 0, inside)
    return photos


def _pair(line: str, left: dict[str, Photo], right: dict[str, Photo], fold: int, same: bool, where: str) -> Pair:
    numbers = [field.strip() for field in line.split(",")]
    if len(numbers) != 2 or not all(number.isascii() and number.isdigit() for number in numbers):
        raise UserError(where, repr(line[:80]), "`NUMBER,NUMBER`")
    for number, photos in zip(numbers, (left, right), strict=True):
        if number not in photos:
            raise UserError(where, f"photo {number}", f"1 to {len(photos):,}, the numbers of its list")
    pair = Pair(left[numbers[0]], right[numbers[1]], fold)
    if pair.left == pair.right:
        raise UserError(where, f"{pair.left} is paired with itself", "two different photos")
    if pair.same is not same:
        kind = "same" if same else "different"
        raise UserError(where, f"{pair.left} and {pair.right} in a list of {kind} pairs", "a pair of that kind")
    return pair
