"""CALFW and CPLFW: LFW's people in pairs far apart in age, and in pose.

Both come with a list (`pairs_CALFW.txt`, `pairs_CPLFW.txt`) that spends two lines on a pair, each a photo and the label
of the pair, the same pairs first:

    Ann_Lee_0001.jpg 1
    Ann_Lee_0004.jpg 1

The label is 0 for two people. For one it is 1 in CPLFW, and the number of the fold, 1 to 10, in CALFW. Where it says
no fold, the same pairs and the different ones are each cut into ten consecutive parts (Zheng et al. 2017,
arXiv:1708.08197; Zheng & Deng 2018).
"""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.config.errors import UserError
from pipeline.evaluate.pairs import NUM_FOLDS, Pair, PairList, Photo, inner_path
from pipeline.evaluate.protocols import consecutive_folds
from pipeline.inputs.listed_pairs import ListedPairs, find_photos, read_lines

_ALIGNED = "aligned images"
_FOLDERS = ("images", "images&landmarks/images", "images&landmarks/images&landmarks/images", ".")
_NAME = re.compile(r"(.+)_[0-9]+\.[A-Za-z]+")


def read_cross_lfw(root: Path, list_path: Path, *, are_aligned: bool) -> ListedPairs:
    """The pairs of CALFW or CPLFW, in ten folds.

    Args:
        root: the folder of the set.
        list_path: its list of pairs.
        are_aligned: take the photos of `aligned images` alone where there is such a folder; else the unaligned ones
            that the distribution has beside it.

    Raises:
        UserError: no list or no photos, or a malformed line, named by its number.
    """
    lines = list(read_lines(list_path, "lines `PHOTO LABEL`, two a pair"))
    if len(lines) % 2 or not lines:
        raise UserError(list_path, f"{len(lines):,} lines", "two a pair")
    pairs, num_contradicting = [], 0
    for first, second in zip(lines[::2], lines[1::2], strict=True):
        (left, label), (right, again) = _photo(*first), _photo(*second)
        if label != again:
            raise UserError(second[0], f"label {again}", f"{label}, as of the line before, the pair's other photo")
        if left == right:
            raise UserError(second[0], f"{left} is paired with itself", "two different photos")
        num_contradicting += (label > 0) != (left.identity == right.identity)
        pairs.append((left, right, label))
    has_folds = max(label for _, _, label in pairs) > 1
    folded = []
    for same in (True, False):
        kind = [pair for pair in pairs if (pair[2] > 0) is same]
        cut = consecutive_folds(len(kind), NUM_FOLDS).tolist()
        for (left, right, label), fold in zip(kind, cut, strict=True):
            folded.append(Pair(left, right, label - 1 if has_folds and same else fold, same))
    listed = PairList(sorted(folded, key=lambda pair: pair.fold), NUM_FOLDS)
    # Unaligned photos lie beside the aligned ones: where one of these is missing, it is not to be replaced by them.
    folders = (_ALIGNED,) if are_aligned and (root / _ALIGNED).is_dir() else _FOLDERS
    try:
        photos = find_photos(root, folders, [photo.path for photo in listed.photos()])
    except UserError:
        if (root / _ALIGNED).is_dir() and not are_aligned:
            raise UserError(
                root, f"{_ALIGNED!r} alone", "unaligned photos", "--detector none for aligned ones"
            ) from None
        raise
    notes = []
    if num_contradicting:
        notes.append(f"The labels of {num_contradicting:,} pairs contradict the names of their photos; labels count.")
    return ListedPairs(listed, photos, [list_path], list_path, notes=notes)


def _photo(where: str, line: str) -> tuple[Photo, int]:
    name, _, label = line.replace("\t", " ").rpartition(" ")
    if not (label.isascii() and label.isdigit() and int(label) <= NUM_FOLDS):
        raise UserError(where, repr(line[:80]), f"`PHOTO LABEL`, the label 0 to {NUM_FOLDS}")
    path = inner_path(name, where)
    match = _NAME.fullmatch(path)
    if match is None:
        raise UserError(where, f"photo {path!r}", "NAME_NUMBER.jpg")
    return Photo(match[1], 0, path), int(label)
