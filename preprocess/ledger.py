"""The ledger for human eyes: self-contained pages, a shard each, of its rejects and of its photos with several faces.

A row shows a thumbnail where the photo decoded. Rejects stand in the manifest for programs too. The pages are a
convenience: no hash covers them.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.atomic_write import write_atomically
from pipeline.data.dataset_format import STATUS_REJECTED
from preprocess.storage import work_folder

_STYLE = (
    "body{font:14px system-ui,sans-serif;margin:2em}table{border-collapse:collapse}"
    "td,th{padding:4px 12px;text-align:left;border-bottom:1px solid #ddd}"
)
_SEVERAL = "photos with several faces"


def ledger_path(out: Path, shard_name: str) -> Path:
    """Where the page of a shard's rejects stands; there is none for a shard without rejects."""
    return out / "rejects" / f"{shard_name}.html"


def several_faces_path(out: Path, shard_name: str) -> Path:
    """Where the page of a shard's kept photos with several faces stands, if it has such photos."""
    return out / "several-faces" / f"{shard_name}.html"


def write_ledger(
    out: Path,
    shard_name: str,
    manifest: pa.Table,
    thumbnails: Sequence[bytes | None],
    num_faces: Sequence[int | None],
) -> None:
    """Write the pages of one shard.

    Args:
        out: the data set.
        shard_name: such as `train-000000`.
        manifest: the shard's rows, with `MANIFEST_SCHEMA`.
        thumbnails: a JPEG or None for each row.
        num_faces: found in each row's photo; None where that is not known.
    """
    wanted = ("status", "reject_reason", "key", "identity", "source", "width", "height")
    rejects, several = [], []
    for row, thumbnail, count in zip(manifest.select(list(wanted)).to_pylist(), thumbnails, num_faces, strict=True):
        if row["status"] == STATUS_REJECTED:
            rejects.append(_row(row, row["reject_reason"], thumbnail))
        elif count is not None and count > 1:
            several.append(_row(row, f"{count} faces", thumbnail))
    _write(ledger_path(out, shard_name), out, "rejects", shard_name, rejects)
    _write(several_faces_path(out, shard_name), out, _SEVERAL, shard_name, several)


def remove_from_ledger(out: Path, shard_name: str, keys: set[str]) -> int:
    """Take the rows of some keys, with their thumbnails, out of a shard's pages; gives their number."""
    return sum(_remove(path(out, shard_name), out, keys) for path in (ledger_path, several_faces_path))


def _row(row: dict[str, Any], note: str, thumbnail: bytes | None) -> str:
    encoded = "" if thumbnail is None else base64.b64encode(thumbnail).decode()
    picture = f'<img alt="" src="data:image/jpeg;base64,{encoded}">' if encoded else ""
    size = f"{row['width']} x {row['height']}" if row["width"] else ""
    cells = [note, row["key"], row["identity"], row["source"], size]
    return f"<tr><td>{picture}</td>{''.join(f'<td>{html.escape(cell)}</td>' for cell in cells)}</tr>\n"


def _write(path: Path, out: Path, what: str, shard_name: str, rows: Sequence[str]) -> None:
    if not rows:
        return
    head = "".join(f"<th>{name}</th>" for name in ("", "reason", "key", "identity", "source", "size, px"))
    page = (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{what.capitalize()} of {shard_name}</title>'
        f"<style>{_STYLE}</style>\n<h1>{len(rows):,} {what} of {shard_name}</h1>\n"
        f"<table><tr>{head}</tr>\n{''.join(rows)}</table></html>\n"
    )
    write_atomically(path, page.encode(), work_folder(out))


def _remove(path: Path, out: Path, keys: set[str]) -> int:
    if not keys or not path.is_file():
        return 0
    lines = path.read_text().splitlines(keepends=True)
    kept = [line for line in lines if not any(f"<td>{key}</td>" in line for key in keys)]
    num_removed = len(lines) - len(kept)
    if num_removed:
        num_left = sum(line.startswith("<tr><td>") for line in kept)
        page = re.sub(r"<h1>[\d,]+ ", f"<h1>{num_left:,} ", "".join(kept))
        write_atomically(path, page.encode(), work_folder(out))
    return num_removed
