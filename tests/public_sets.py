"""Tiny copies of public test sets in their own layouts, of drawn photos."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tests.datasets import encode_jpeg, random_image

Named = tuple[str, int]
"""A person and a number."""
NamedPair = tuple[Named, Named]

PHOTO_PX = 40


def write_photo(path: Path, seed: int, side_px: int = PHOTO_PX) -> None:
    """A drawn photo that differs from those of other seeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_jpeg(random_image(np.random.default_rng(seed), side_px)))


def write_cfp(root: Path, folds: Sequence[tuple[str, str]], *, num_people: int = 3) -> Path:
    """CFP with two frontal photos and a profile of each person; `folds` are the contents of `same.txt`, `diff.txt`.

    Frontal photos are numbered 1, 2 (person 001), 3, 4 (person 002), …; profiles 1, 2, 3, ….
    """
    lists: dict[str, list[str]] = {"F": [], "P": []}
    for person in range(1, num_people + 1):
        for kind, folder, count in (("F", "frontal", 2), ("P", "profile", 1)):
            for number in range(1, count + 1):
                name = f"Data/Images/{person:03d}/{folder}/{number:02d}.jpg"
                write_photo(root / name, 100 * person + 10 * (kind == "P") + number)
                lists[kind].append(f"{len(lists[kind]) + 1} ../{name}")
    (root / "Protocol").mkdir()
    for kind, lines in lists.items():
        # As the distribution has them: carriage returns, and a blank line at the end.
        (root / "Protocol" / f"Pair_list_{kind}.txt").write_bytes(("\r\n".join(lines) + "\r\n\r\n").encode())
    for split in ("FF", "FP"):
        for number, contents in enumerate(folds, start=1):
            folder = root / "Protocol" / "Split" / split / f"{number:02d}"
            folder.mkdir(parents=True)
            for name, content in zip(("same.txt", "diff.txt"), contents, strict=True):
                (folder / name).write_text(content)
    return root


def cross_lfw_lines(folds: Sequence[Sequence[NamedPair]], *, fold_labels: bool) -> str:
    """The content of `pairs_CALFW.txt` (with `fold_labels`) or `pairs_CPLFW.txt` for folds of pairs."""
    lines = []
    for same in (True, False):
        for number, pairs in enumerate(folds, start=1):
            label = (number if fold_labels else 1) if same else 0
            for pair in pairs:
                if (pair[0][0] == pair[1][0]) is same:
                    lines += [f"{name}_{photo:04d}.jpg {label}" for name, photo in pair]
    return "\n".join(lines) + "\n"


def write_ijb(root: Path, faces: Sequence[tuple[int, int, float]], pairs: Sequence[tuple[int, int, int]]) -> Path:
    """IJB-C with a photo for each (template, medium, detector score), the landmarks on a 112 px template's places."""
    points = "38.3 51.7 73.5 51.5 56.0 71.7 41.5 92.4 70.7 92.2"
    (root / "meta").mkdir(parents=True)
    for number in range(1, len(faces) + 1):
        write_photo(root / "loose_crop" / f"{number}.jpg", number, 112)
    for name, lines in (
        ("name_5pts_score", [f"{n}.jpg {points} {score}" for n, (_, _, score) in enumerate(faces, start=1)]),
        ("face_tid_mid", [f"{n}.jpg {template} {medium}" for n, (template, medium, _) in enumerate(faces, start=1)]),
        ("template_pair_label", [" ".join(map(str, pair)) for pair in pairs]),
    ):
        (root / "meta" / f"ijbc_{name}.txt").write_text("\n".join(lines) + "\n")
    return root
