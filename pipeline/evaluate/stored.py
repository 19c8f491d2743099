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

        Photos of a data set go by their keys, and photos that a list names by path go by that path. Any other goes by
        the name that pair lists give it, `Name_0001`; folders and the extension of a photo's file are left out of the
        file's keys.

        Raises:
            UserError: two of the file's keys are one photo's.
        """
        by_key = {key: row for row, key in enumerate(self.keys)}
        have_keys = isinstance(source, DatasetPhotos) or all(photo.path for photo in photos)
        by_name = {} if have_keys else self._rows_by_name()
        kept: list[Photo] = []
        rows: list[int] = []
        missing: dict[Photo, str] = {}
        for photo in photos:
            key = source.key(photo) if isinstance(source, DatasetPhotos) else photo.path
            if isinstance(key, Rejected):
                missing[photo] = key.reason
                continue
            row = by_key.get(key) if key else by_name.get(str(photo))
            if row is None:
                missing[photo] = "no embedding in the file"
            else:
                kept.append(photo)
                rows.append(row)
        return kept, self.vectors[rows].astype(np.float64), missing

    def _rows_by_name(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for row, key in enumerate(self.keys):
            first = found.setdefault(_photo_name(key), row)
            if first != row:
                raise UserError(self.where, f"{self.keys[first]!r} and {key!r} name one photo", "each photo once")
        return found


def _photo_name(key: str) -> str:
    path = PurePosixPath(key)
    return path.stem if path.suffix.lower() in _PHOTO_SUFFIXES else path.name
