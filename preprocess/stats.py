"""`preprocess stats`: what a data set holds, as tables."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from pipeline.config.errors import UserError
from pipeline.data.manifest import STATUS_KEPT, DatasetInfo, open_dataset, shard_paths
from pipeline.data.tombstones import read_tombstones

_QUANTILES = (0, 5, 25, 50, 75, 95, 100)
_MEASURES = {
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


def print_stats(out: Path, console: Console) -> None:
    """Print counts, photos an identity, rejects by reason, and quantiles of what was measured.

    Raises:
        UserError: not a finished data set, or a manifest that cannot be read.
    """
    info = open_dataset(out).info
    tables = {split: _read(out, info, split) for split in info.splits}
    present = {split: table.filter(pa.compute.equal(table["status"], STATUS_KEPT)) for split, table in tables.items()}
    withdrawn = read_tombstones(out)["sample_id"].combine_chunks()
    is_gone = {split: pa.compute.is_in(table["sample_id"], withdrawn) for split, table in present.items()}
    kept = {split: table.filter(pa.compute.invert(is_gone[split])) for split, table in present.items()}
    console.print(_counts(info, kept, {split: len(present[split]) - len(kept[split]) for split in kept}))
    rejects = _rejects(tables)
    if rejects.row_count:
        console.print(rejects)
    console.print(_quantiles(pa.concat_tables(kept.values())))


def _read(out: Path, info: DatasetInfo, split: str) -> pa.Table:
    wanted = [
        "sample_id",
        "status",
        "reject_reason",
        "label",
        "bbox",
        *(name for name in _MEASURES if name != "face_px"),
    ]
    tables = []
    for shard in info.splits[split].shards:
        path = shard_paths(out, split, shard)["manifest"]
        try:
            tables.append(pq.read_table(path, columns=wanted))
        except (OSError, pa.ArrowException) as error:
            found = f"unreadable manifest ({str(error).splitlines()[0]})"
            raise UserError(path, found, remedy=f"preprocess verify {out}") from None
    return pa.concat_tables(tables)


def _counts(info: DatasetInfo, kept: dict[str, pa.Table], num_withdrawn: dict[str, int]) -> Table:
    table = Table(title="splits")
    table.add_column("")
    columns: list[list[str]] = []
    for split, description in info.splits.items():
        table.add_column(split, justify="right")
        photos = np.unique(kept[split]["label"].to_numpy(), return_counts=True)[1]
        spread = [photos.min(), np.median(photos), photos.max()] if len(photos) else [0, 0, 0]
        counts = [len(kept[split]), num_withdrawn[split], description.num_rejected, len(photos)]
        counts += [len(description.shards), description.num_bytes, *spread, int((photos == 1).sum())]
        columns.append([f"{count:,.0f}" for count in counts])
    names = ["photos", "withdrawn", "rejected", "identities", "shards", "bytes"]
    names += ["photos an identity, least", "median", "most", "identities with one photo"]
    for name, *values in zip(names, *columns, strict=True):
        table.add_row(name, *values)
    return table


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
    for name, title in _MEASURES.items():
        values = _face_px(kept) if name == "face_px" else kept[name].drop_null().to_numpy()
        if len(values):  # crops that came aligned have no boxes
            table.add_row(title, *(f"{value:,.4g}" for value in np.percentile(values, _QUANTILES)))
    return table


def _face_px(kept: pa.Table) -> npt.NDArray[np.floating]:
    boxes = kept["bbox"].drop_null().combine_chunks()
    flat = boxes.flatten().to_numpy(zero_copy_only=False).reshape(-1, 4)
    return (flat[:, 2:] - flat[:, :2]).min(axis=1, initial=np.inf) if len(flat) else np.empty(0)
