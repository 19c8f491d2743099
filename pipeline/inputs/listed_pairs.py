"""What the readers of test sets share: pairs of photos that go by path, text lists, and the photos themselves."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.config.errors import UserError
from pipeline.evaluate.grouped_pairs import Groups
from pipeline.evaluate.pairs import PairList, Photo
from pipeline.evaluate.photos import Crop, Rejected

NO_SUCH_FILE = "no such file"


@dataclass(frozen=True)
class ListedPairs:
    """A test set's pairs, as its own files give them."""

    pairs: PairList
    """Of photos with a path."""
    root: Path
    """What the paths are relative to."""
    lists: list[Path]
    """The files that the pairs come from."""
    where: Path
    """The file or folder of pairs that the result names."""
    groups: dict[str, Groups] = field(default_factory=dict)
    knows_people: bool = True
    notes: list[str] = field(default_factory=list)


class PathPhotos:
    """Photos by path, cropped by a function that is handed in; see `pipeline.evaluate.photos.PhotoSource`."""

    def __init__(self, root: Path, crop: Callable[[Path], Crop | Rejected]) -> None:
        self._root, self._crop = root, crop

    def load(self, photo: Photo) -> Crop | Rejected:
        path = self._root / photo.path
        return self._crop(path) if path.is_file() else Rejected(NO_SUCH_FILE)


def read_lines(path: Path, expected: str) -> Iterator[tuple[str, str]]:
    """`FILE:NUMBER` and the text of each line that is not blank, without white space at its ends.

    Raises:
        UserError: no such file, or not UTF-8 text; `expected` says what it should be.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UserError(path, f"unreadable ({reason})", expected) from None
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{path}:{number}", line.strip()


def find_photos(root: Path, folders: Sequence[str], paths: Sequence[str]) -> Path:
    """Which of the folders below `root` holds most of the photos that a list names; of equals the first.

    Raises:
        UserError: none holds any.
    """
    best, most = root, 0
    for name in folders:
        folder = root / name
        count = sum((folder / path).is_file() for path in paths) if folder.is_dir() else 0
        if count > most:
            best, most = folder, count
    if most == 0:
        looked_in = ", ".join("the folder itself" if name == "." else f"{name!r}" for name in folders)
        raise UserError(root, f"none of the {len(paths):,} photos of the list", f"{paths[0]} in one of {looked_in}")
    return best


def digest_files(paths: Sequence[Path]) -> str:
    """The SHA-256 of the files' content, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()
