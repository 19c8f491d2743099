"""`preprocess verify`: read everything again and compare every hash, offset and CRC with what the records say."""

from __future__ import annotations

import hashlib
import io
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from pipeline.config.errors import UserError
from pipeline.data.dataset_format import (
    MANIFEST_SCHEMA,
    STATUS_KEPT,
    DatasetInfo,
    ShardCommit,
    dataset_digest,
    shard_paths,
)
from pipeline.data.manifest import Dataset, build_index, open_dataset, read_index
from pipeline.data.tombstones import TOMBSTONES_FILE, read_tombstones
from preprocess.dataset import describe, read_commits
from preprocess.plan import INSTRUCTION_SET, PLAN_FILE, Plan, load_plan
from preprocess.shard import build_idx, key_of, write_tar

_BLOCK_BYTES = 2**22


class _Sample(NamedTuple):
    """What is needed of a kept row. In a damaged manifest each may be None."""

    key: str
    jpg_offset: int
    jpg_size: int
    jpg_crc32: int
    label: int


@dataclass(frozen=True)
class Fault:
    """Something that is not as it was written."""

    shard: str
    """Or a file's path in the data set; empty where the fault is in `dataset.json`."""
    key: str
    """Empty where the fault is the shard's."""
    offset: int
    """Byte offset in the tar where the damaged sample's JPEG starts, or in the file where it differs; -1 if unknown."""
    what: str

    def __str__(self) -> str:
        parts = [self.shard or "dataset.json"]
        if self.key:
            parts.append(f"key {self.key}")
        if self.offset >= 0:
            parts.append(f"byte {self.offset}")
        return f"{', '.join(parts)}: {self.what}"


def find_faults(out: Path, on_shard: Callable[[int], None]) -> list[Fault]:
    """Check a finished data set; returns the faults found, in order of shards and rows.

    The manifest is the witness for each sample, the commit record for the manifest, `dataset.json` for all commits, and
    the plan for `dataset.json`.

    Args:
        out: the data set.
        on_shard: told 1 after each shard.

    Raises:
        UserError: `out` is not a finished data set in a local folder.
    """
    dataset = open_dataset(out)
    out, info = dataset.folder, dataset.info
    faults: list[Fault] = []
    plan: Plan | None = None
    try:
        plan = load_plan(out)
        faults.extend(_check_listed(plan, info))
    except UserError as error:
        faults.append(Fault(PLAN_FILE, "", -1, error.found))
    commits: list[ShardCommit] = []
    for split, description in info.splits.items():
        for shard in description.shards:
            commit = _read_commit(out, split, shard)
            if commit is None:
                faults.append(Fault(shard, "", -1, "commit record missing or unreadable"))
            else:
                commits.append(commit)
                if plan is not None and commit.plan_hash != plan.hash:
                    faults.append(Fault(shard, "", -1, f"the commit record's plan_hash is not that of {PLAN_FILE}"))
                faults.extend(_check_shard(out, commit))
            on_shard(1)
    faults.extend(_find_strangers(out, info))
    faults.extend(_check_tombstones(dataset))
    if len(commits) == info.num_shards and dataset_digest(commits) != info.digest:
        faults.append(Fault("", "", -1, "the digest is not that of the commit records"))
    for split, description in info.splits.items():
        own = [commit for commit in commits if commit.split == split]
        found = (sum(c.num_samples for c in own), sum(c.num_rejected for c in own), sum(c.tar_bytes for c in own))
        expected = (description.num_samples, description.num_rejected, description.num_bytes)
        if len(own) == len(description.shards) and found != expected:
            what = f"split {split}: samples, rejects and bytes are {expected}, the commit records say {found}"
            faults.append(Fault("", "", -1, what))
    if plan is not None and not faults:  # with sound shards, what is derived from them can be made again
        faults.extend(_check_description(plan, dataset))
    return faults


def _check_description(plan: Plan, dataset: Dataset) -> Iterator[Fault]:
    """`dataset.json` field by field, and the index that every reader maps, against the plan and the manifests."""
    found = _flatten(dataset.info)
    expected = _flatten(describe(plan, dataset.folder, read_commits(plan, dataset.folder)))
    is_sound = True
    for name in found:
        if name == INSTRUCTION_SET and not expected[name]:  # a plan from before it was recorded there
            continue
        if found[name] != expected[name]:
            is_sound = False
            yield Fault("", "", -1, f"{name} is {found[name]!r}, expected {expected[name]!r}")
    index = read_index(dataset)
    if is_sound and index is not None and not index.equals(build_index(dataset), check_metadata=True):
        yield Fault("index.arrow", "", -1, "differs from the manifests; delete it, it is made again when it is read")


def _flatten(info: DatasetInfo) -> dict[str, object]:
    """Fields by name; those of a split as `splits.train.num_samples`."""
    fields = info.model_dump(exclude={"splits"})
    for split, description in info.splits.items():
        fields |= {f"splits.{split}.{name}": value for name, value in description.model_dump().items()}
    return fields


def _check_listed(plan: Plan, info: DatasetInfo) -> Iterator[Fault]:
    """The shards of `dataset.json` against the plan's."""
    planned = {(plan.shard(number).split, plan.shard(number).name) for number in range(plan.num_shards)}
    listed = {(split, shard) for split, description in info.splits.items() for shard in description.shards}
    for split, shard in sorted(planned - listed):
        yield Fault("", "", -1, f"splits: {split}/{shard} is missing")
    for split, shard in sorted(listed - planned):
        yield Fault("", "", -1, f"splits: {split}/{shard} is not in {PLAN_FILE}")


def _find_strangers(out: Path, info: DatasetInfo) -> Iterator[Fault]:
    """Files among the shards that no shard owns: readers that take `train/*.tar` would read them."""
    own = {
        path
        for split, description in info.splits.items()
        for shard in description.shards
        for path in shard_paths(out, split, shard).values()
    }
    for folder in sorted({path.parent for path in own}):
        try:
            found = sorted(folder.iterdir())
        except OSError:  # missing: each of its files is a fault already
            continue
        for path in found:
            if path not in own:
                yield Fault(str(path.relative_to(out)), "", -1, "does not belong to the data set")


def _check_tombstones(dataset: Dataset) -> Iterator[Fault]:
    """The list of withdrawn samples: it may name some that only an earlier version had, each with its key."""
    try:
        withdrawn = read_tombstones(dataset.root)
    except UserError as error:
        yield Fault(TOMBSTONES_FILE, "", -1, error.found)
        return
    for sample_id, key in zip(withdrawn["sample_id"].to_pylist(), withdrawn["key"].to_pylist(), strict=True):
        if key != key_of(sample_id):
            yield Fault(TOMBSTONES_FILE, key, -1, f"is not the key of sample {sample_id}")


def _read_commit(out: Path, split: str, shard: str) -> ShardCommit | None:
    try:
        commit = ShardCommit.model_validate_json(shard_paths(out, split, shard)["commit"].read_text())
    except (OSError, ValueError):
        return None
    return commit if (commit.split, commit.shard) == (split, shard) else None


def _check_shard(out: Path, commit: ShardCommit) -> Iterator[Fault]:
    paths = shard_paths(out, commit.split, commit.shard)
    manifest_bytes = _read(paths["manifest"])
    rows = None
    if manifest_bytes is None:
        yield Fault(commit.shard, "", -1, "manifest missing or unreadable")
    else:
        if hashlib.sha256(manifest_bytes).hexdigest() != commit.manifest_sha256:
            yield Fault(
                commit.shard, "", -1, f"manifest changed: its {len(manifest_bytes):,} bytes have another sha256"
            )
        rows, num_rejected = _samples(manifest_bytes)
        if rows is not None and (len(rows), num_rejected) != (commit.num_samples, commit.num_rejected):
            what = f"the commit record counts {commit.num_samples:,} samples and {commit.num_rejected:,} rejects, "
            yield Fault(commit.shard, "", -1, what + f"the manifest {len(rows):,} and {num_rejected:,}")
    tar_ok = False
    if not paths["tar"].is_file():
        yield Fault(commit.shard, "", -1, "tar missing")
    else:
        try:
            faults, tar_ok = _check_tar(paths["tar"], commit, rows)
            yield from faults
        except OSError as error:
            yield Fault(commit.shard, "", -1, f"tar cannot be read ({error.strerror})")
    yield from _check_idx(paths["idx"], paths["tar"], commit, tar_ok)


def _check_tar(tar: Path, commit: ShardCommit, rows: list[_Sample] | None) -> tuple[list[Fault], bool]:
    """The faults of a shard's tar, and whether its sha256 is the commit record's."""
    faults = []
    size = tar.stat().st_size
    if size != commit.tar_bytes:
        what = f"tar has {size:,} of {commit.tar_bytes:,} bytes"
        faults.append(Fault(commit.shard, "", min(size, commit.tar_bytes), what))
    damaged = list(_check_samples(tar, size, commit.shard, rows))
    is_sound = _sha256(tar) == commit.tar_sha256
    if not is_sound and not damaged and size == commit.tar_bytes:
        damaged = list(_check_between(tar, commit.shard, rows))
    return faults + damaged, is_sound


def _check_samples(tar: Path, tar_bytes: int, shard: str, rows: list[_Sample] | None) -> Iterator[Fault]:
    """Every JPEG against its CRC in the manifest, which may be damaged itself."""
    with open(tar, "rb") as file:
        for row in rows or []:
            key = row.key or ""
            if None in row or row.jpg_offset < 2 * 512 or row.jpg_size < 0:
                yield Fault(shard, key, -1, f"manifest has an impossible row: {row}")
                continue
            label = str(row.label).encode()
            # The label's member stands before the JPEG's header: one block of header, one of content.
            file.seek(min(row.jpg_offset - 2 * 512, tar_bytes))
            before = file.read(2 * 512)
            data = file.read(max(0, min(row.jpg_size, tar_bytes - row.jpg_offset)))
            if len(data) < row.jpg_size:
                what = f"JPEG cut off after {len(data):,} of {row.jpg_size:,} bytes"
                yield Fault(shard, key, row.jpg_offset, what)
            elif zlib.crc32(data) != row.jpg_crc32:
                yield Fault(shard, key, row.jpg_offset, "JPEG does not match its CRC")
            elif before[: len(label) + 1].rstrip(b"\0") != label:
                yield Fault(shard, key, row.jpg_offset - 2 * 512, f"label member is not {row.label}")


def _check_between(tar: Path, shard: str, rows: list[_Sample] | None) -> Iterator[Fault]:
    """The tar's hash differs though each JPEG and label is sound: find the header or padding that changed.

    Tars are written without times and users, so what stands between the samples' content is known exactly.
    """
    if rows is None:
        yield Fault(shard, "", -1, "tar has another sha256, and without a manifest the place is unknown")
        return
    with open(tar, "rb") as file:
        members = []
        for row in rows:
            file.seek(row.jpg_offset)
            members.append((row.key, row.label, file.read(row.jpg_size)))
        rebuilt = io.BytesIO()
        try:
            write_tar(rebuilt, members)
        except ValueError:  # a key that is no member's name
            yield Fault(shard, "", -1, "tar has another sha256, and with this manifest the place is unknown")
            return
        expected = rebuilt.getvalue()
        file.seek(0)
        found = file.read()
    if found == expected:
        yield Fault(shard, "", -1, "tar is sound but its sha256 is not the commit record's")
        return
    offset = _first_difference(found, expected)
    owner = next((row.key for row in rows if row.jpg_offset > offset), "")
    yield Fault(shard, owner, offset, "tar header or padding changed")


def _check_idx(idx: Path, tar: Path, commit: ShardCommit, tar_ok: bool) -> Iterator[Fault]:
    content = _read(idx)
    if content is None:
        yield Fault(commit.shard, "", -1, "idx missing or unreadable")
        return
    if hashlib.sha256(content).hexdigest() == commit.idx_sha256:
        return
    offset = -1
    if tar_ok:
        expected = build_idx(tar)
        offset = _first_difference(content, expected)
    yield Fault(commit.shard, "", offset, "idx changed")


def _first_difference(found: bytes, expected: bytes) -> int:
    """Where two byte strings part; the shorter one's length when it is the beginning of the other."""
    length = min(len(found), len(expected))
    differs = np.frombuffer(found, np.uint8, length) != np.frombuffer(expected, np.uint8, length)
    return int(differs.argmax()) if differs.any() else length


def _samples(manifest: bytes) -> tuple[list[_Sample] | None, int]:
    """The manifest's kept rows and the number of the others, even when its hash is wrong, if it can be read at all."""
    try:
        table = pq.read_table(pa.BufferReader(manifest))
        if not table.schema.equals(MANIFEST_SCHEMA):
            return None, 0
        kept = table.filter(pa.compute.equal(table["status"], STATUS_KEPT))
        columns = [kept[name].to_pylist() for name in _Sample._fields]
    except (OSError, ValueError, pa.ArrowException):  # ValueError: text that is not UTF-8
        return None, 0
    return [_Sample(*values) for values in zip(*columns, strict=True)], len(table) - len(kept)


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _sha256(path: Path) -> str:
    hasher = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            hasher.update(block)
    return hasher.hexdigest()
