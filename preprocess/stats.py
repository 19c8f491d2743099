"""`preprocess stats`: what a data set holds, as tables."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute
from rich.console import Console
from rich.table import Table

from pipeline.data.dataset_format import STATUS_KEPT, DatasetInfo
from pipeline.data.manifest import open_dataset
from pipeline.data.tombstones import read_tombstones

_PLACES = ("sample_id", "split", "shard", "jpg_offset", "jpg_size", "jpg_crc32")
_QUANTILES = (0, 5, 25, 50, 75, 95, 100)
MEASURES = {
    "width": "photo width, px",
    "height": "photo height, px",
    "face_px": "face box's shorter side, px",
    "det_score": "detector score",
    "sharpness": "sharpness",
    "yaw": "yaw, degrees",
    "pitch": "pitch, degrees",
    "roll": "roll, degrees",
    "jpg_size": "crop, bytes",
}
_COLUMNS = [*_PLACES, "status", "reject_reason", "label", "identity", "source", "bbox"]
_COLUMNS += [name for name in MEASURES if name not in ("face_px", *_PLACES)]


@dataclass(frozen=True)
class Contents:
    """What the manifests of a data set say."""

    info: DatasetInfo
    tables: dict[str, pa.Table]
    """All rows of each split."""
    kept: dict[str, pa.Table]
    """The kept rows that are not withdrawn."""
    num_withdrawn: dict[str, int]
    """Kept rows that are."""


def read_contents(out: Path) -> Contents:
    """Read the manifests.

    Raises:
        UserError: not a finished data set in a local folder, or a manifest that cannot be read.
    """
    dataset = open_dataset(out)
    out, info = dataset.folder, dataset.info
    by_split: dict[str, list[pa.Table]] = {split: [] for split in info.splits}
    for split, _, table in dataset.manifests(_COLUMNS):
        by_split[split].append(table)
    tables = {split: pa.concat_tables(found) for split, found in by_split.items()}
    present = {split: table.filter(pa.compute.equal(table["status"], STATUS_KEPT)) for split, table in tables.items()}
    withdrawn = read_tombstones(out)["sample_id"].combine_chunks()
    is_gone = {split: pa.compute.is_in(table["sample_id"], withdrawn) for split, table in present.items()}
    kept = {split: table.filter(pa.compute.invert(is_gone[split])) for split, table in present.items()}
    return Contents(info, tables, kept, {split: len(present[split]) - len(kept[split]) for split in kept})


def print_stats(contents: Contents, console: Console) -> None:
    """Print counts, photos an identity, rejects by reason, and quantiles of what was measured."""
    table = Table(title="splits")
    table.add_column("")
    for split in contents.info.splits:
        table.add_column(split, justify="right")
    for name, values in count_rows(contents):
        table.add_row(name, *values)
    console.print(table)
    rejects = _rejects(contents.tables)
    if rejects.row_count:
        console.print(rejects)
    console.print(_quantiles(pa.concat_tables(contents.kept.values())))


def count_rows(contents: Contents) -> list[tuple[str, list[str]]]:
    """What is counted, and the count of each split."""
    columns: list[list[str]] = []
    for split, description in contents.info.splits.items():
        photos = np.unique(contents.kept[split]["label"].to_numpy(), return_counts=True)[1]
        spread = [photos.min(), np.median(photos), photos.max()] if len(photos) else [0, 0, 0]
        counts = [len(contents.kept[split]), contents.num_withdrawn[split], description.num_rejected, len(photos)]
        counts += [len(description.shards), description.num_bytes, *spread, int((photos == 1).sum())]
        columns.append([f"{count:,.0f}" for count in counts])
    names = ["photos", "withdrawn", "rejected", "identities", "shards", "bytes"]
    names += ["photos an identity, least", "median", "most", "identities with one photo"]
    return [(name, list(values)) for name, *values in zip(names, *columns, strict=True)]


def _rejects(tables: dict[str, pa.Table]) -> Table:
    table = Table(title="rejects")
    table.add_column("reason")
    for split in tables:
        table.add_column(split, justify="right")
    counts = {
        split: Counter(reason for reason in content["reject_reason"].to_pylist() if reason)
        for split, content in tables.items()
    }
    for reason in sorted(set().union(*counts.values())):
        table.add_row(reason, *(f"{counts[split][reason]:,}" for split in tables))
    return table


def _quantiles(kept: pa.Table) -> Table:
    table = Table(title="kept photos, percentiles")
    table.add_column("")
    for quantile in _QUANTILES:
        table.add_column({0: "least", 50: "median", 100: "most"}.get(quantile, f"{quantile} %"), justify="right")
    for name, title in MEASURES.items():
        values = face_px(kept) if name == "face_px" else kept[name].drop_null().to_numpy()
        if len(values):  # crops that came aligned have no boxes
            table.add_row(title, *(f"{value:,.4g}" for value in np.percentile(values, _QUANTILES)))
    return table


def face_px(kept: pa.Table) -> npt.NDArray[np.floating]:
    """The shorter side of each face box, in px; none of crops that came aligned."""
    boxes = kept["bbox"].drop_null().combine_chunks()
    flat = boxes.flatten().to_numpy(zero_copy_only=False).reshape(-1, 4)
    return (flat[:, 2:] - flat[:, :2]).min(axis=1, initial=np.inf) if len(flat) else np.empty(0)
