"""Where photos come from: folders, lists, RecordIO, tars and Parquet.

source = find_source(Path("faces_emore"))        # what stands there
photos, listing, notes = list_source(source)     # a store of bytes, a table with a row a photo, sentences
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import pyarrow as pa

from pipeline.config.errors import UserError
from preprocess.sources.listing import LISTING_SCHEMA, PLACE_SCHEMA, OnBytes
from preprocess.sources.store import PhotoStore

__all__ = ["LAYOUTS", "LISTING_SCHEMA", "PLACE_SCHEMA", "Source", "find_source", "list_source", "read_source"]

AUTO, FOLDERS = "auto", "folders"
LAYOUTS = (AUTO, FOLDERS, "lfw", "celeba", "vggface2", "casia")
_LISTS = (".csv", ".parquet", ".lst", ".txt")
_EXPECTED = (
    "a folder of identity folders, a .csv, .parquet, .lst or .txt list, InsightFace's train.rec, "
    "WebDataset .tar files, or .parquet files with an image column"
)


class Source(Protocol):
    """Photos to be listed."""

    @property
    def where(self) -> Path:
        """What to name in messages."""
        ...

    @property
    def num_bytes(self) -> int:
        """Of the containers that listing goes through; 0 where photos are files of their own."""
        ...

    def photos(self) -> PhotoStore:
        """The store that reads the photos. Takes no time: workers elsewhere call this without listing."""
        ...

    def list_rows(self, on_bytes: OnBytes) -> tuple[pa.Table, list[str]]:
        """A table with `LISTING_SCHEMA`, for byte ranges of containers also `PLACE_SCHEMA`, and sentences about what
        was passed over. The order depends on the names alone.

        Raises:
            UserError: the source cannot be understood.
        """
        ...


def find_source(source: Path, layout: str = AUTO) -> Source:
    """What kind of source stands at a path.

    Args:
        source: a file or a folder.
        layout: one of `LAYOUTS`; `auto` looks what stands there.

    Raises:
        UserError: nothing there, or nothing that is known; it says what was found.
    """
    from preprocess.sources.files import FolderSource, ListSource
    from preprocess.sources.layouts import NAMED_LAYOUTS, LayoutSource
    from preprocess.sources.parquet_images import ParquetSource, holds_images
    from preprocess.sources.rec import RecordSource
    from preprocess.sources.tars import TarSource

    refuse_url(source)
    if layout not in LAYOUTS:
        raise UserError("--layout", f"unknown layout {layout!r}", f"one of {', '.join(LAYOUTS)}")
    if not source.exists():
        raise UserError(source, "no such file or folder", _EXPECTED)
    if layout != AUTO and not source.is_dir():
        raise UserError(source, f"--layout {layout} and not a folder", "a folder", "leave --layout out")
    if layout == FOLDERS:
        return FolderSource(source)
    if layout in NAMED_LAYOUTS:
        return LayoutSource(source, layout)
    if source.is_dir():
        return _find_in_folder(source)
    suffix = source.suffix.lower()
    if suffix == ".rec":
        return RecordSource(source)
    if suffix == ".tar":
        return TarSource(source.parent, [source.name])
    if suffix == ".parquet" and holds_images(source):
        return ParquetSource(source.parent, [source.name])
    if suffix in _LISTS:
        return ListSource(source)
    remedy = {
        ".bin": f"a verification set? preprocess import-bin {source} OUT",
        ".idx": f"name {source.with_suffix('.rec').name}",
    }
    raise UserError(source, f"a file of the unknown kind {suffix!r}", _EXPECTED, remedy.get(suffix, ""))


def list_source(source: Source, on_bytes: OnBytes = lambda _: None) -> tuple[PhotoStore, pa.Table, list[str]]:
    """List a source.

    Returns:
        The store that reads its photos, and what `Source.list_rows` gives.

    Raises:
        UserError: as `Source.list_rows`, or there are no photos.
    """
    photos = source.photos()  # before the listing, so that a container that changes meanwhile is noticed
    table, notes = source.list_rows(on_bytes)
    if len(table) == 0:
        found = "; ".join(["no photos", *notes])
        raise UserError(source.where, found, _EXPECTED)
    return photos, table, notes


def read_source(source: Path, layout: str = AUTO) -> tuple[PhotoStore, pa.Table, list[str]]:
    """`find_source` and `list_source` in one."""
    return list_source(find_source(source, layout))


def refuse_url(path: Path) -> None:
    """Refuse what names no file or folder of this machine.

    Raises:
        UserError: a URL. `pipe:` would run a command; others are not read here.
    """
    scheme, colon, _ = str(path).partition(":")
    if not colon or "/" in scheme or path.exists():
        return
    if scheme == "pipe":
        raise UserError(path, "a pipe: URL, which would run a command", "a file or a folder; pipes are never opened")
    if str(path).startswith(f"{scheme}:/"):
        raise UserError(path, f"a URL ({scheme}:)", "a file or a folder", "fetch it first, or mount it")


def _find_in_folder(folder: Path) -> Source:
    """InsightFace's files, else folders of people, else containers that lie there."""
    from preprocess.sources.files import FolderSource
    from preprocess.sources.layouts import guess_layout
    from preprocess.sources.parquet_images import ParquetSource, holds_images
    from preprocess.sources.rec import RecordSource, is_rec_folder
    from preprocess.sources.tars import TarSource

    if is_rec_folder(folder):
        return RecordSource(folder / "train.rec")
    if layout := guess_layout(folder):
        found = "not a folder of people: it looks like a published data set"
        raise UserError(folder, found, "", f"say --layout {layout}, or --layout folders to take it as it is")
    visible = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    by_suffix = {
        suffix: [path.name for path in visible if path.suffix.lower() == suffix and path.is_file()]
        for suffix in (".rec", ".tar", ".parquet")
    }
    if any(path.is_dir() for path in visible):
        return FolderSource(folder)
    kinds = [suffix for suffix, names in by_suffix.items() if names]
    if len(kinds) > 1 or len(by_suffix[".rec"]) > 1:
        several = ", ".join(name for each in by_suffix.values() for name in each[:2])
        raise UserError(folder, f"several sources ({several})", "one kind", "name the file that is meant")
    if kinds == [".rec"]:
        return RecordSource(folder / by_suffix[".rec"][0])
    if kinds == [".tar"]:
        return TarSource(folder, by_suffix[".tar"])
    if kinds == [".parquet"]:
        names = by_suffix[".parquet"]
        if not holds_images(folder / names[0]):
            raise UserError(folder / names[0], "a list and not photos", "", "name the file instead of its folder")
        return ParquetSource(folder, names)
    return FolderSource(folder)
