"""AgeDB-30: pairs of photos thirty years apart (Moschoglou et al. 2017).

The distribution holds the photos of the protocols in `03_Protocol_Images` (`5024_MariaCallas_35_f.jpg`: number, person,
age, sex) and the pairs in `AgeDB_FINAL_protocol/04_FINAL_protocol_30_years.mat`: the cell array `splits`, for each of
ten folds a struct whose first field is a 2 x P cell array of structs that begin with a photo's name, and whose second
field labels the pairs, 1 for one person and -1 for two. SciPy reads the file and calls nothing in it.

The text list that goes with photos taken out of InsightFace's `agedb_30.bin` has lines `LEFT RIGHT LABEL` instead; it
does not say who is on the photos, and its pairs are cut into ten consecutive folds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config.errors import UserError
from pipeline.evaluate.pairs import NUM_FOLDS, Pair, PairList, Photo, inner_path
from pipeline.evaluate.protocols import consecutive_folds
from pipeline.inputs.listed_pairs import ListedPairs, find_photos, read_lines

LISTS = (
    "AgeDB_FINAL_protocol/04_FINAL_protocol_30_years.mat",
    "04_FINAL_protocol_30_years.mat",
    "agedb_30_pair.txt",
)
_FOLDERS = ("03_Protocol_Images", "AgeDB", "agedb30_align_112", ".")
_NAME = re.compile(r"[0-9]+_(.+)_[0-9]+_[a-z]\.[A-Za-z]+")
_EXPECTED = "AgeDB's protocol: `splits`, ten structs of 2 x P photos and P labels of 1 or -1"


def read_agedb(root: Path, list_path: Path) -> ListedPairs:
    """The pairs of AgeDB-30 in its ten folds.

    Args:
        root: the folder of the set.
        list_path: the protocol's `.mat` file, or a text list.

    Raises:
        UserError: no list or no photos, or a list of another form.
    """
    is_mat = list_path.suffix == ".mat"
    pairs = list(_read_mat(list_path) if is_mat else _read_text(list_path))
    if not pairs:
        raise UserError(list_path, "no pairs", "a line a pair")
    listed = PairList(pairs, NUM_FOLDS)
    photos = find_photos(root, _FOLDERS, [photo.path for photo in listed.photos()])
    return ListedPairs(listed, photos, [list_path], list_path, knows_people=is_mat)


def _read_mat(path: Path) -> Iterator[Pair]:
    from scipy.io import loadmat

    try:
        folds = [_unpack(fold) for fold in loadmat(str(path))["splits"].ravel()]
    except OSError as error:
        raise UserError(path, f"unreadable ({error.strerror or error})", _EXPECTED) from None
    except Exception as error:  # whatever SciPy's parser ran into: all of it means another kind of file
        raise UserError(path, f"another content ({type(error).__name__})", _EXPECTED) from None
    if len(folds) != NUM_FOLDS:
        raise UserError(path, f"{len(folds)} folds", _EXPECTED)
    for number, (left, right, labels) in enumerate(folds):
        where = f"{path}, fold {number + 1}"
        for place, label in enumerate(labels):
            pair = Pair(_photo(left[place], where), _photo(right[place], where), number, label > 0)
            if pair.label is not (pair.left.identity == pair.right.identity):
                found = f"label {label} of {pair.left} and {pair.right}"
                raise UserError(where, found, "1 for one person, -1 for two")
            yield pair


def _unpack(fold: Any) -> tuple[list[str], list[str], list[int]]:
    """The left and right names and the labels of one fold, out of MATLAB's nested arrays."""
    struct = fold.ravel()[0]
    pairs, labels = struct[0], np.asarray(struct[1]).ravel().astype(int).tolist()
    left, right = ([str(np.asarray(photo.ravel()[0][0]).ravel()[0]) for photo in side] for side in pairs)
    if not len(left) == len(right) == len(labels) or not set(labels) <= {1, -1, 0}:
        raise ValueError("pairs and labels do not match")
    return left, right, labels


def _photo(name: str, where: str) -> Photo:
    path = inner_path(f"{name}.jpg", where)
    match = _NAME.fullmatch(path)
    if match is None:
        raise UserError(where, f"photo {name!r}", "NUMBER_NAME_AGE_SEX")
    return Photo(match[1], 0, path)


def _read_text(path: Path) -> Iterator[Pair]:
    lines = list(read_lines(path, "lines `LEFT RIGHT LABEL`"))
    for (where, line), fold in zip(lines, consecutive_folds(len(lines), NUM_FOLDS).tolist(), strict=True):
        fields = line.split()
        if len(fields) != 3 or fields[2] not in ("1", "0", "-1"):
            raise UserError(where, repr(line[:80]), "`LEFT RIGHT LABEL`, the label 1 for one person, -1 or 0 for two")
        left, right = (inner_path(field, where) for field in fields[:2])
        if left == right:
            raise UserError(where, f"{left} is paired with itself", "two different photos")
        yield Pair(Photo(left, 0, left), Photo(right, 0, right), fold, fields[2] == "1")
