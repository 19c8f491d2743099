"""The ledger of rejects for human eyes: one self-contained page a shard, with a thumbnail where the photo decoded.

The same rows stand in the manifest for programs. The page is a convenience: no hash covers it.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from pipeline.data.manifest import STATUS_REJECTED
from preprocess.storage import work_folder, write_atomically

_STYLE = (
    "body{font:14px system-ui,sans-serif;margin:2em}table{border-collapse:collapse}"
    "td,th{padding:4px 12px;text-align:left;border-bottom:1px solid #ddd}"
)


def ledger_path(out: Path, shard_name: str) -> Path:
    """Where the page of a shard stands; there is none for a shard without rejects."""
    return out / "rejects" / f"{shard_name}.html"


def write_ledger(out: Path, shard_name: str, manifest: pa.Table, thumbnails: Sequence[bytes | None]) -> None:
    """Write the page of one shard's rejects.

    Args:
        out: the data set.
        shard_name: such as `train-000000`.
        manifest: the shard's rows, with `MANIFEST_SCHEMA`.
        thumbnails: a JPEG or None for each row.
    """
    wanted = ("status", "reject_reason", "key", "identity", "source", "width", "height")
    rows = []
    for number, row in enumerate(manifest.select(list(wanted)).to_pylist()):
        if row["status"] != STATUS_REJECTED:
            continue
        thumbnail = thumbnails[number]
        encoded = "" if thumbnail is None else base64.b64encode(thumbnail).decode()
        picture = f'<img alt="" src="data:image/jpeg;base64,{encoded}">' if encoded else ""
        size = f"{row['width']} x {row['height']}" if row["width"] else ""
        cells = [row["reject_reason"], row["key"], row["identity"], row["source"], size]
        text = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
        rows.append(f"<tr><td>{picture}</td>{text}</tr>\n")
    if not rows:
        return
    head = "".join(f"<th>{name}</th>" for name in ("", "reason", "key", "identity", "source", "size, px"))
    page = (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>Rejects of {shard_name}</title>'
        f"<style>{_STYLE}</style>\n<h1>{len(rows):,} rejects of {shard_name}</h1>\n"
        f"<table><tr>{head}</tr>\n{''.join(rows)}</table></html>\n"
    )
    write_atomically(ledger_path(out, shard_name), work_folder(out), page.encode())


def remove_from_ledger(out: Path, shard_name: str, keys: set[str]) -> int:
    """Take the rows of some keys, with their thumbnails, out of a shard's page; gives their number."""
    path = ledger_path(out, shard_name)
    if not keys or not path.is_file():
        return 0
    lines = path.read_text().splitlines(keepends=True)
    kept = [line for line in lines if not any(f"<td>{key}</td>" in line for key in keys)]
    num_removed = len(lines) - len(kept)
    if num_removed:
        num_left = sum(line.startswith("<tr><td>") for line in kept)
        page = "".join(kept)
        page = re.sub(r"<h1>[\d,]+ rejects of", f"<h1>{num_left:,} rejects of", page)
        write_atomically(path, work_folder(out), page.encode())
    return num_removed
