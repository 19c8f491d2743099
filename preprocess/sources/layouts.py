"""Folders as published data sets come: LFW, CelebA, VGGFace2, CASIA-WebFace, with the boxes and landmarks they bring.

The coordinates of CelebA and VGGFace2 are px of the photos that the files belong to; both count of eyes and mouth
corners the image's left first, as lists here do.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from pipeline.config.errors import UserError
from preprocess.photo import PHOTO_SUFFIXES
from preprocess.sources.folder import list_folder
from preprocess.sources.listing import OnBytes, Rows
from preprocess.sources.store import PhotoFiles, PhotoStore

_Listed = tuple[pa.Table, list[str]]
_IDENTITY_FILES = ("identity_CelebA.txt", "Anno/identity_CelebA.txt")
_CELEBA_PHOTOS = (("img_celeba", "list_landmarks_celeba.txt"), ("img_align_celeba", "list_landmarks_align_celeba.txt"))
_VGGFACE2_FILES = ("", "bb_landmark", "meta")


@dataclass(frozen=True)
class LayoutSource:
    """A folder in one of `NAMED_LAYOUTS`."""

    root: Path
    layout: str
    num_bytes: int = 0

    @property
    def where(self) -> Path:
        return self.root

    def photos(self) -> PhotoStore:
        return PhotoFiles(self.root)

    def list_rows(self, on_bytes: OnBytes) -> _Listed:
        """Photos by their paths' bytes.

        Raises:
            UserError: naming the file or folder that the layout has and this folder lacks, or a malformed line.
        """
        return NAMED_LAYOUTS[self.layout](self.root)


def guess_layout(root: Path) -> str:
    """The layout of a published set that would pass for a folder of people and is none, or an empty string."""
    if any((root / name).is_file() for name in _IDENTITY_FILES):
        return "celeba"
    train = root / "train"
    if train.is_dir() and any(re.fullmatch(r"n[0-9]{6}", path.name) for path in train.iterdir()):
        return "vggface2"
    return ""


def _list_lfw(root: Path) -> _Listed:
    inner = next((path for path in sorted(root.glob("lfw*")) if path.is_dir() and not list(path.glob("*.jpg"))), None)
    return _list_people(
        root, inner or root, lambda name, stem: re.fullmatch(rf"{re.escape(name)}_[0-9]{{4}}", stem), "NAME/NAME_0001"
    )


def _list_casia(root: Path) -> _Listed:
    folder = root / "CASIA-WebFace" if (root / "CASIA-WebFace").is_dir() else root
    return _list_people(root, folder, lambda name, stem: re.fullmatch(r"[0-9]+", name), "0000045/001")


def _list_vggface2(root: Path) -> _Listed:
    part = next((name for name in ("train", "data/train") if (root / name).is_dir()), "")
    table, notes = _list_people(
        root, root / part, lambda name, stem: re.fullmatch(r"n[0-9]{6}", name), "n000001/0001_01"
    )
    others = [name for name in ("test", "data/test") if part and (root / name).is_dir()]
    notes += [f"passed over the folder {name}: other people, for tests" for name in others]
    landmarks = _vggface2_numbers(root, "loose_landmark_train.csv", 10)
    boxes = _vggface2_numbers(root, "loose_bb_train.csv", 4)
    rows = Rows()
    for source, identity, problem in zip(
        *(table[name].to_pylist() for name in ("source", "identity", "problem")), strict=True
    ):
        key = "/".join(Path(source).with_suffix("").parts[-2:])
        rows.add(source, identity, bbox=_corners(boxes.get(key)), landmarks=landmarks.get(key), problem=problem)
    return rows.table(), notes


def _list_celeba(root: Path) -> _Listed:
    identities = _first_file(root, *_IDENTITY_FILES)
    found = (
        (root / place, folder, landmark_file)
        for folder, landmark_file in _CELEBA_PHOTOS
        for place in (folder, f"Img/{folder}")
        if (root / place).is_dir()
    )
    photos, folder, landmark_file = next(found, (None, "", ""))
    if photos is None:
        raise UserError(
            root, f"no folder {' or '.join(f for f, _ in _CELEBA_PHOTOS)}, also not in Img", "CelebA's photos"
        )
    landmarks = _celeba_numbers(identities.with_name(landmark_file), 10)
    boxes = _celeba_numbers(identities.with_name("list_bbox_celeba.txt"), 4) if folder == "img_celeba" else {}
    rows = Rows()
    named: set[str] = set()
    for where, (name, identity) in _lines(identities, 2):
        if name in named or "/" in name:
            raise UserError(where, f"the photo {name!r}", "each photo once, without a folder")
        named.add(name)
        source = (photos / name).relative_to(root).as_posix()
        rows.add(source, identity, bbox=_corners(boxes.get(name)), landmarks=landmarks.get(name))
    unnamed = sum(path.suffix.lower() in PHOTO_SUFFIXES and path.name not in named for path in photos.iterdir())
    notes = [f"passed over {unnamed:,} files: not in {identities.name}"] if unnamed else []
    if not landmarks:
        notes.append(f"{landmark_file} is missing: faces will be detected")
    return rows.sorted_by_source(), notes


def _list_people(root: Path, folder: Path, fits: Callable[[str, str], re.Match[str] | None], example: str) -> _Listed:
    """A folder of people whose names, and the stems of whose photos, have a form of their own."""
    table, notes = list_folder(folder)
    prefix = "" if folder == root else f"{folder.relative_to(root).as_posix()}/"
    rows = Rows()
    passed_over = 0
    for source, identity, problem in zip(
        *(table[name].to_pylist() for name in ("source", "identity", "problem")), strict=True
    ):
        if not problem and not fits(identity, Path(source).stem):
            passed_over += 1
            continue
        rows.add(prefix + source, identity, problem=problem)
    if passed_over == len(table) and passed_over:
        found = f"none of {passed_over:,} photos is named as in this layout, such as {table['source'][0].as_py()}"
        raise UserError(folder, found, f"{example}.jpg", "or take --layout folders")
    return rows.table(), notes + ([f"passed over {passed_over:,} files: not named as {example}"] if passed_over else [])


def _first_file(root: Path, *names: str) -> Path:
    for name in names:
        if (root / name).is_file():
            return root / name
    raise UserError(root, f"no file {' or '.join(names)}", "it, to know whose photo is whose")


def _lines(path: Path, num_fields: int) -> Iterator[tuple[str, list[str]]]:
    """Where each line stands and its fields."""
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                fields = line.split()
                if len(fields) != num_fields:
                    raise UserError(f"{path}, line {number}", f"{len(fields)} fields", f"{num_fields}")
                yield f"{path}, line {number}", fields
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(path, f"unreadable ({error})") from None


def _celeba_numbers(path: Path, count: int) -> dict[str, list[float]]:
    """Numbers by photo from a file that begins with a count and a line of column names; nothing where there is none."""
    if not path.is_file():
        return {}
    found = {}
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if number > 2:
                    name, *fields = line.split() or [""]
                    found[name] = _floats(f"{path}, line {number}", fields, count)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(path, f"unreadable ({error})") from None
    return found


def _vggface2_numbers(root: Path, name: str, count: int) -> dict[str, list[float]]:
    """Numbers by `n000001/0001_01` from a CSV with a line of column names; nothing where there is none."""
    path = next((root / folder / name for folder in _VGGFACE2_FILES if (root / folder / name).is_file()), None)
    if path is None:
        return {}
    found = {}
    try:
        with open(path, encoding="utf-8", newline="") as file:
            for number, fields in enumerate(csv.reader(file), start=1):
                if number > 1 and fields:
                    found[fields[0].strip()] = _floats(f"{path}, line {number}", fields[1:], count)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(path, f"unreadable ({error})") from None
    return found


def _floats(where: str, fields: list[str], count: int) -> list[float]:
    try:
        values = [float(field) for field in fields]
    except ValueError:
        values = []
    if len(values) != count:
        raise UserError(where, f"{' '.join(fields)!r}", f"{count} numbers")
    return values


def _corners(box: list[float] | None) -> list[float] | None:
    """From x, y, width, height to x0, y0, x1, y1. A box without an area says nothing."""
    if box is None or box[2] <= 0 or box[3] <= 0:
        return None
    return [box[0], box[1], box[0] + box[2], box[1] + box[3]]


NAMED_LAYOUTS: dict[str, Callable[[Path], _Listed]] = {
    "lfw": _list_lfw,
    "celeba": _list_celeba,
    "vggface2": _list_vggface2,
    "casia": _list_casia,
}
