"""`preprocess import-bin`: a verification set becomes a folder of photos and a pair list, which evaluation reads."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

from pipeline.config.errors import UserError
from pipeline.data.pair_bin import photo_names, read_pair_bin
from preprocess.storage import finish_folder, unfinished_folder

PAIRS_FILE = "pairs.txt"
NUM_FOLDS = 10
"""InsightFace cuts its sets into ten parts, in the file's order."""

_SUFFIXES = ((b"\xff\xd8\xff", "jpg"), (b"\x89PNG", "png"), (b"BM", "bmp"), (b"RIFF", "webp"))


def write_pair_folder(path: Path, out: Path) -> tuple[int, list[str]]:
    """Write the photos of a `.bin` file as `PERSON/PERSON_0001.jpg`, and `pairs.txt` in LFW's format, to a new folder.

    Who is on a photo is not known beyond its pair, so each pair has people of its own: see `photo_names`. Photos keep
    their bytes. The folder appears when it is complete.

    Args:
        path: the verification set.
        out: the folder to make.

    Returns:
        The number of pairs, and sentences about the folds.

    Raises:
        UserError: `path` is no verification set or has no pair list, or `out` exists.
    """
    if out.exists():
        raise UserError(out, "exists already", "a new folder")
    pairs = read_pair_bin(path)
    folds, notes = _folds(path, pairs.is_same)
    work = unfinished_folder(out, "import")
    if work.exists():
        shutil.rmtree(work)
    names = [photo_names(number, same) for number, same in enumerate(pairs.is_same)]
    for (person, number), image in zip((name for pair in names for name in pair), pairs.images, strict=True):
        _write_photo(work, person, number, image)
    (work / PAIRS_FILE).write_text(_pair_list([(left, right) for (left, _), (right, _) in names], folds))
    finish_folder(work, out)
    return len(names), notes


def _write_photo(folder: Path, person: str, number: int, image: bytes) -> None:
    suffix = next((suffix for magic, suffix in _SUFFIXES if image.startswith(magic)), "jpg")
    path = folder / person / f"{person}_{number:04d}.{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image)


def _folds(path: Path, is_same: list[bool]) -> tuple[list[list[int]], list[str]]:
    """Pair numbers by fold, same pairs first, as LFW's format wants it: as many of each kind in each fold.

    Raises:
        UserError: the set has more pairs of one kind than of the other.
    """
    same = [number for number, each in enumerate(is_same) if each]
    different = [number for number, each in enumerate(is_same) if not each]
    if len(same) != len(different):
        found = f"{len(same):,} same and {len(different):,} different pairs"
        raise UserError(path, found, "as many of each kind, as a pair list in LFW's format has")
    cuts = [len(is_same) * fold // NUM_FOLDS for fold in range(NUM_FOLDS + 1)]
    folds = [
        [*(n for n in same if start <= n < end), *(n for n in different if start <= n < end)]
        for start, end in itertools.pairwise(cuts)
    ]
    per_kind = len(same) // NUM_FOLDS
    if all(len(fold) == 2 * per_kind and sum(is_same[n] for n in fold) == per_kind for fold in folds):
        return folds, []
    note = "the file's ten parts do not hold as many pairs of each kind: one block of pairs, dealt into folds evenly"
    return [same + different], [note]


def _pair_list(names: list[tuple[str, str]], folds: list[list[int]]) -> str:
    per_kind = len(folds[0]) // 2
    lines = [f"{len(folds)}\t{per_kind}" if len(folds) > 1 else str(per_kind)]
    for fold in folds:
        for number in fold:
            left, right = names[number]
            lines.append(f"{left}\t1\t2" if left == right else f"{left}\t1\t{right}\t1")
    return "\n".join(lines) + "\n"
