"""Embeddings that were made elsewhere: they are looked up by a photo's key, and no model runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt

from pipeline.config.errors import UserError
from pipeline.evaluate.pairs import Photo
from pipeline.evaluate.photos import DatasetPhotos, PhotoSource, Rejected

_PHOTO_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"})


@dataclass(frozen=True)
class StoredEmbeddings:
    """A file's content, checked."""

    where: str
    """The file."""
    keys: list[str]
    """Each once."""
    vectors: npt.NDArray[np.floating]
    """[N, D], finite and not zero, of any length; row i belongs to `keys[i]`."""

    def find(
        self, source: PhotoSource, photos: Sequence[Photo]
    ) -> tuple[list[Photo], npt.NDArray[np.float64], dict[Photo, str]]:
        """The photos that have an embedding, these as they are in the file [n, D], and why the others have none.

        Photos of a data set go by their keys, and photos that a list names by path by these. Any other photo goes by
        the name that pair lists give it, `Name_0001`; folders and the extension of a photo's file are left out of the
        file's keys.

        Raises:
            UserError: two of the file's keys are one photo's.
        """
        is_exact = isinstance(source, DatasetPhotos) or any(photo.path for photo in photos)
        names = self.keys if is_exact else [_photo_name(key) for key in self.keys]
        row_of: dict[str, int] = {}
        for row, name in enumerate(names):
            if row_of.setdefault(name, row) != row:
                found = f"{self.keys[row_of[name]]!r} and {self.keys[row]!r} name one photo"
                raise UserError(self.where, found, "each photo once")
        kept: list[Photo] = []
        rows: list[int] = []
        missing: dict[Photo, str] = {}
        for photo in photos:
            key = source.key(photo) if isinstance(source, DatasetPhotos) else str(photo)
            if isinstance(key, Rejected):
                missing[photo] = key.reason
            elif key not in row_of:
                missing[photo] = "no embedding in the file"
            else:
                kept.append(photo)
                rows.append(row_of[key])
        return kept, self.vectors[rows].astype(np.float64), missing


def _photo_name(key: str) -> str:
    path = PurePosixPath(key)
    return path.stem if path.suffix.lower() in _PHOTO_SUFFIXES else path.name
