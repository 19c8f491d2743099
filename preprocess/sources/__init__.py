"""Where photos come from: a folder of folders, or a CSV or Parquet list."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from pipeline.config.errors import UserError

LISTING_SCHEMA = pa.schema(
    [
        ("source", pa.string()),  # relative to the source root with "/", or absolute where a list says so
        ("identity", pa.string()),
        ("bbox", pa.list_(pa.float32(), 4)),  # null unless a list gives it
        ("landmarks", pa.list_(pa.float32(), 10)),
        ("problem", pa.string()),  # why the row is a reject before it is read; empty for nearly all
    ]
)


def read_source(source: Path) -> tuple[Path, pa.Table, list[str]]:
    """List the photos of a folder or of a list.

    Returns:
        The folder that relative paths start from, a table with `LISTING_SCHEMA` in an order that depends on the names
        alone, and sentences about what was passed over.

    Raises:
        UserError: nothing there, nothing in it, or a list that cannot be understood.
    """
    from preprocess.sources.folder import list_folder
    from preprocess.sources.table import read_list

    if not source.exists():
        raise UserError(source, "no such file or folder", "a folder of identity folders, or a .csv or .parquet list")
    root = source if source.is_dir() else source.parent
    table, notes = list_folder(source) if source.is_dir() else read_list(source)
    if len(table) == 0:
        found = "; ".join(["no photos", *notes])
        raise UserError(source, found, "photos as IDENTITY/PHOTO.jpg (jpeg, png, webp, bmp or tiff)")
    return root, table, notes
