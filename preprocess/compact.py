"""`preprocess compact`: a new data set without some samples, of the same crops, for readers that know no tombstones."""

from __future__ import annotations

import zlib
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console

from pipeline.config.errors import UserError
from pipeline.data.dataset_format import STATUS_KEPT, DatasetInfo, shard_paths
from pipeline.data.manifest import open_dataset, read_manifest
from pipeline.data.tombstones import read_tombstones
from preprocess.dataset import finish_dataset
from preprocess.plan import Plan, load_plan, rebuild_plan, save_plan
from preprocess.progress import Advance, show_progress
from preprocess.shard import SLICE_ROWS, SLICE_SCHEMA, ShardContext, finish_shard, read_commit, write_slice
from preprocess.sources.store import PhotoFiles
from preprocess.storage import finish_folder, unfinished_folder


def write_version(
    data: Path, out: Path, dropped: Collection[int], what: str, console: Console
) -> tuple[DatasetInfo, int]:
    """Copy a data set without some samples and the withdrawn ones, with a bar: see `compact`.

    Args:
        data: a finished data set.
        out: a new folder.
        dropped: sample ids to leave out beside the withdrawn ones.
        what: the bar's name.
        console: where it is shown.

    Returns:
        The description of the copy, and how many samples were withdrawn.
    """
    num_shards = open_dataset(data).info.num_shards
    withdrawn = read_tombstones(data)["sample_id"].to_pylist()
    with show_progress(console, what, num_shards, unit="shards") as advance:
        return compact(data, out, {*dropped, *withdrawn}, advance), len(withdrawn)


def compact(data: Path, out: Path, without: Collection[int], advance: Advance) -> DatasetInfo:
    """Copy a data set's crops and manifest rows, but for some samples. OUT appears when it is complete.

    Labels, keys, splits and the order within shards stay; the digest is new. Interrupted, the same call goes on.

    Args:
        data: a finished data set.
        out: a new folder.
        without: sample ids to leave out, of kept photos and of rejects.
        advance: told 1 after each shard.

    Raises:
        UserError: no data set, `out` exists, nothing would be left, or a crop that does not match its checksum.
    """
    dataset = open_dataset(data)
    data, info = dataset.folder, dataset.info
    if out.exists():
        raise UserError(out, "exists already", "a new folder")
    plan = _plan_without(load_plan(data), without)
    if not len(plan.rows):
        raise UserError(data, "all its photos are withdrawn", "photos that are left")
    work = unfinished_folder(out, f"compact-{info.digest[:12]}-{plan.hash[:12]}")
    work.mkdir(parents=True, exist_ok=True)
    save_plan(plan, work)
    context = ShardContext(PhotoFiles(data), work, plan.options, plan.hash)
    for number in range(plan.num_shards):
        shard = plan.shard(number)
        if read_commit(work, shard, plan.hash) is None:
            made = _crops(data, shard.split, shard.name, shard.rows["sample_id"])
            for index, start in enumerate(range(0, len(made), SLICE_ROWS)):
                write_slice(context, shard.name, index, made.slice(start, SLICE_ROWS))
            finish_shard(context, replace(shard, rows=shard.rows.combine_chunks()))
        advance(1)
    result = finish_dataset(plan, work)
    finish_folder(work, out)
    return result


def _plan_without(plan: Plan, without: Collection[int]) -> Plan:
    mask = pc.invert(pc.is_in(plan.rows["sample_id"], pa.array(sorted(without), pa.int64())))
    return rebuild_plan(plan, plan.rows.filter(mask))


def _crops(data: Path, split: str, shard: str, sample_ids: pa.ChunkedArray) -> pa.Table:
    """What sharding made of a shard's photos, with `SLICE_SCHEMA`, from the finished shard."""
    paths = shard_paths(data, split, shard)
    manifest = read_manifest(paths["manifest"], data=data)
    manifest = manifest.filter(pc.is_in(manifest["sample_id"], sample_ids.combine_chunks()))
    if not manifest["sample_id"].combine_chunks().equals(sample_ids.combine_chunks()):
        raise UserError(paths["manifest"], "its rows are not those of the plan", remedy=f"preprocess verify {data}")
    jpgs: list[bytes | None] = []
    with open(paths["tar"], "rb") as tar:
        wanted = ("status", "jpg_offset", "jpg_size", "jpg_crc32", "key")
        for row in manifest.select(list(wanted)).to_pylist():
            if row["status"] != STATUS_KEPT:
                jpgs.append(None)
                continue
            tar.seek(row["jpg_offset"])
            content = tar.read(row["jpg_size"])
            if zlib.crc32(content) != row["jpg_crc32"]:
                found = f"{row['key']}.jpg does not match its checksum"
                raise UserError(paths["tar"], found, remedy=f"preprocess verify {data}")
            jpgs.append(content)
    columns = {name: manifest[name] for name in SLICE_SCHEMA.names if name in manifest.column_names}
    columns["jpg"] = pa.array(jpgs, pa.binary())
    nothing = {name: pa.nulls(len(manifest), SLICE_SCHEMA.field(name).type) for name in SLICE_SCHEMA.names}
    return pa.table(nothing | columns, schema=SLICE_SCHEMA)
