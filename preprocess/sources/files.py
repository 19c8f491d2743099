"""Photos that are files of their own: in a folder of folders, or named by a list."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from preprocess.sources.folder import list_folder
from preprocess.sources.listing import OnBytes
from preprocess.sources.store import PhotoFiles, PhotoStore
from preprocess.sources.table import read_list
from preprocess.sources.text_list import read_text_list


@dataclass(frozen=True)
class FolderSource:
    """A folder of identity folders, see `preprocess.sources.folder`."""

    root: Path
    num_bytes: int = 0

    @property
    def where(self) -> Path:
        return self.root

    def photos(self) -> PhotoStore:
        return PhotoFiles(self.root, identity_folders=True)

    def list_rows(self, on_bytes: OnBytes) -> tuple[pa.Table, list[str]]:
        """See `list_folder`."""
        return list_folder(self.root)


@dataclass(frozen=True)
class ListSource:
    """A `.csv`, `.parquet`, `.lst` or `.txt` list; relative paths start from its folder."""

    path: Path
    num_bytes: int = 0

    @property
    def where(self) -> Path:
        return self.path

    def photos(self) -> PhotoStore:
        return PhotoFiles(self.path.parent)

    def list_rows(self, on_bytes: OnBytes) -> tuple[pa.Table, list[str]]:
        """See `read_list` and `read_text_list`."""
        is_text = self.path.suffix.lower() in (".lst", ".txt")
        return read_text_list(self.path) if is_text else read_list(self.path)
