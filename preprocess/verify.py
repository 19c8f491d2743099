"""`preprocess verify`: read everything again and compare every hash, offset and CRC with what the records say."""

from __future__ import annotations

import hashlib
import io
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.manifest import (
    MANIFEST_SCHEMA,
    STATUS_KEPT,
    ShardCommit,
    dataset_digest,
    open_dataset,
    shard_paths,
)
from preprocess.shard import build_idx, write_tar

_BLOCK_BYTES = 2**22


@dataclass(frozen=True)
class Fault:
    """Something that is not as it was written."""

    shard: str
    """Empty where the fault is the data set's."""
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

    The manifest is the witness for each sample, the commit record for the manifest, and `dataset.json` for all commits.

    Args:
        out: the data set.
        on_shard: told 1 after each shard.

    Raises:
        UserError: `out` is not a finished data set.
    """
    info = open_dataset(out).info
    faults: list[Fault] = []
    commits: list[ShardCommit] = []
    for split, description in info.splits.items():
        for shard in description.shards:
            commit = _read_commit(out, split, shard)
            if commit is None:
                faults.append(Fault(shard, "", -1, "commit record missing or unreadable"))
            else:
                commits.append(commit)
                faults.extend(_check_shard(out, commit))
            on_shard(1)
    num_shards = sum(len(description.shards) for description in info.splits.values())
    if len(commits) == num_shards and dataset_digest(commits) != info.digest:
        faults.append(Fault("", "", -1, "the digest is not that of the commit records"))
    for split, description in info.splits.items():
        own = [commit for commit in commits if commit.split == split]
        found = (sum(c.num_samples for c in own), sum(c.num_rejected for c in own), sum(c.tar_bytes for c in own))
        expected = (description.num_samples, description.num_rejected, description.num_bytes)
        if len(own) == len(description.shards) and found != expected:
            what = f"split {split}: samples, rejects and bytes are {expected}, the commit records say {found}"
            faults.append(Fault("", "", -1, what))
    return faults


def _read_commit(out: Path, split: str, shard: str) -> ShardCommit | None:
    try:
        commit = ShardCommit.model_validate_json(shard_paths(out, split, shard)["commit"].read_text())
    except (OSError, ValueError):
        return None
    return commit if (commit.split, commit.shard) == (split, shard) else None


def _check_shard(out: Path, commit: ShardCommit) -> Iterator[Fault]:
    paths = shard_paths(out, commit.split, commit.shard)
    manifest_bytes = _read(paths["manifest"])
    if manifest_bytes is None:
        yield Fault(commit.shard, "", -1, "manifest missing or unreadable")
    elif hashlib.sha256(manifest_bytes).hexdigest() != commit.manifest_sha256:
        yield Fault(commit.shard, "", -1, f"manifest changed: its {len(manifest_bytes):,} bytes have another sha256")
    rows = _kept_rows(paths["manifest"])
    tar_ok = False
    if not paths["tar"].is_file():
        yield Fault(commit.shard, "", -1, "tar missing")
    else:
        size = paths["tar"].stat().st_size
        if size != commit.tar_bytes:
            yield Fault(
                commit.shard, "", min(size, commit.tar_bytes), f"tar has {size:,} of {commit.tar_bytes:,} bytes"
            )
        damaged = list(_check_samples(paths["tar"], commit.shard, rows))
        yield from damaged
        tar_ok = _sha256(paths["tar"]) == commit.tar_sha256
        if not tar_ok and not damaged and size == commit.tar_bytes:
            yield from _check_between(paths["tar"], commit.shard, rows)
    yield from _check_idx(paths["idx"], paths["tar"], commit, tar_ok)


def _check_samples(tar: Path, shard: str, rows: pa.Table | None) -> Iterator[Fault]:
    """Every JPEG against its CRC in the manifest."""
    if rows is None:
        return
    with open(tar, "rb") as file:
        columns = [rows[name].to_pylist() for name in ("key", "jpg_offset", "jpg_size", "jpg_crc32", "label")]
        for key, offset, size, crc32, label in zip(*columns, strict=True):
            file.seek(offset)
            data = file.read(size)
            if len(data) < size:
                yield Fault(shard, key, offset, f"JPEG cut off after {len(data):,} of {size:,} bytes")
            elif zlib.crc32(data) != crc32:
                yield Fault(shard, key, offset, "JPEG does not match its CRC")
            else:
                # The label's member stands before the JPEG's header: one block of header, one of content.
                expected = str(label).encode()
                file.seek(offset - 2 * 512)
                if file.read(len(expected) + 1).rstrip(b"\0") != expected:
                    yield Fault(shard, key, offset - 2 * 512, f"label member is not {label}")


def _check_between(tar: Path, shard: str, rows: pa.Table | None) -> Iterator[Fault]:
    """The tar's hash differs though each JPEG and label is sound: find the header or padding that changed.

    Tars are written without times and users, so what stands between the samples' content is known exactly.
    """
    if rows is None:
        yield Fault(shard, "", -1, "tar has another sha256, and without a manifest the place is unknown")
        return
    with open(tar, "rb") as file:
        members = []
        columns = [rows[name].to_pylist() for name in ("key", "jpg_offset", "jpg_size", "label")]
        for key, offset, size, label in zip(*columns, strict=True):
            file.seek(offset)
            members.append((key, label, file.read(size)))
        rebuilt = io.BytesIO()
        write_tar(rebuilt, members)
        expected = rebuilt.getvalue()
        file.seek(0)
        found = file.read()
    if found == expected:
        yield Fault(shard, "", -1, "tar is sound but its sha256 is not the commit record's")
        return
    offset = _first_difference(found, expected)
    offsets = rows["jpg_offset"].to_pylist()
    owner = next((key for key, start in zip(rows["key"].to_pylist(), offsets, strict=True) if start > offset), "")
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


def _kept_rows(manifest: Path) -> pa.Table | None:
    """The manifest's kept rows even when its hash is wrong, as long as it can be read."""
    try:
        table = pq.read_table(manifest)
        if not table.schema.equals(MANIFEST_SCHEMA):
            return None
    except (OSError, pa.ArrowException):
        return None
    return table.filter(pa.compute.equal(table["status"], STATUS_KEPT))


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
