"""What a data set directory holds, and in which shape: names, schemas, `dataset.json`, commit records, hashes.

The tars' bytes, the manifests and the commit records together are the contract between preprocessing and training;
`pipeline.data.manifest` opens it. This module imports neither torch nor an image library.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from pipeline.config.location import Location, RemotePath

FORMAT_VERSION = 1
DESCRIPTION = "dataset.json"
INDEX = "index.arrow"
STATUS_KEPT = "kept"
STATUS_REJECTED = "rejected"

MANIFEST_SCHEMA = pa.schema(
    [
        ("sample_id", pa.int64()),  # unique over the data set: the row's number in the plan's source listing
        ("key", pa.string()),  # the tar members' common stem, unique over the data set, [0-9a-z_-]+
        ("split", pa.string()),
        ("shard", pa.string()),  # "train-000000"
        ("row", pa.int32()),  # place among the shard's kept rows; -1 for a reject
        ("jpg_offset", pa.int64()),  # byte offset of the JPEG's data in the tar; -1 for a reject
        ("jpg_size", pa.int64()),  # bytes; 0 for a reject
        ("jpg_crc32", pa.uint32()),
        ("label", pa.int64()),  # number of the identity in the plan, written to KEY.cls
        ("identity", pa.string()),
        ("source", pa.string()),  # path relative to the source root, "/" separated
        ("source_sha256", pa.string()),  # hex; empty where the file could not be read
        ("width", pa.int32()),  # of the source photo, px, after EXIF orientation
        ("height", pa.int32()),
        ("det_score", pa.float32()),
        ("bbox", pa.list_(pa.float32(), 4)),  # x0, y0, x1, y1 in source px
        ("landmarks", pa.list_(pa.float32(), 10)),  # five x, y pairs in source px
        ("sharpness", pa.float32()),  # variance of the crop's Laplacian
        ("yaw", pa.float32()),  # degrees, estimated from the five landmarks
        ("pitch", pa.float32()),
        ("roll", pa.float32()),
        ("phash", pa.uint64()),  # 64-bit DCT hash of the crop
        ("status", pa.string()),  # STATUS_KEPT or STATUS_REJECTED
        ("reject_reason", pa.string()),  # empty when kept
    ]
)

INDEX_SCHEMA = pa.schema(
    [
        ("shard", pa.int32()),  # position in the split's list of shards
        ("jpg_offset", pa.int64()),
        ("jpg_size", pa.int32()),
        ("jpg_crc32", pa.uint32()),
        ("label", pa.int32()),  # contiguous within the split: 0 … num_labels - 1
        ("plan_label", pa.int64()),  # the manifest's label
        ("sample_id", pa.int64()),
        ("by_label", pa.int32()),  # the split's rows, sorted by label, then row: the photos of a person side by side
    ]
)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SplitInfo(_Frozen):
    """Counts of one split."""

    num_samples: int
    """Kept rows."""
    num_identities: int
    """Identities with at least one kept row."""
    num_rejected: int
    num_bytes: int
    """Bytes of all the split's tars."""
    shards: list[str]
    """Shard names in order: `train-000000`, …; each is `<split>/<name>.tar`."""


class CropInfo(_Frozen):
    """Geometry of the crops."""

    size_px: int
    template: list[float]
    """The five target points x0, y0, … x4, y4 at `size_px`, in px."""

    def difference_from(self, other: CropInfo) -> str:
        """What sets these crops apart from others: `crops of 64 px`, `crops of another template`, or nothing."""
        if self.size_px != other.size_px:
            return f"crops of {self.size_px} px"
        return "" if self.template == other.template else "crops of another template"


class CodecInfo(_Frozen):
    """How crops are stored."""

    format: str = "jpeg"
    quality: int
    keeps_jpegs: bool = Field(default=False, exclude_if=lambda keeps: not keeps)
    """Whether JPEGs of the right size stand as they came; `quality` is that of the others."""


class DetectorInfo(_Frozen):
    """Which detector found the faces; `none` for photos that came already aligned."""

    name: str
    weights_sha256: str
    options: dict[str, Any]


class DatasetInfo(_Frozen):
    """The content of `dataset.json`. It bears no time stamp: the same input gives the same bytes."""

    format_version: int = FORMAT_VERSION
    digest: str
    """sha256 hex, see `dataset_digest`: names the data set's content and so its order."""
    splits: dict[str, SplitInfo]
    crop: CropInfo
    codec: CodecInfo
    detector: DetectorInfo
    versions: dict[str, str]
    instruction_set: str
    label_map_sha256: str
    seed: int
    reject_counts: dict[str, int]
    licence: str = ""

    @property
    def num_samples(self) -> int:
        """Kept rows of all splits."""
        return sum(split.num_samples for split in self.splits.values())

    @property
    def num_shards(self) -> int:
        return sum(len(split.shards) for split in self.splits.values())


class ShardCommit(_Frozen):
    """The content of `commits/<shard>.json`: written last; a shard counts when this exists and matches."""

    shard: str
    split: str
    plan_hash: str
    num_samples: int
    num_rejected: int
    tar_bytes: int
    tar_sha256: str
    idx_sha256: str
    manifest_sha256: str


@overload
def shard_paths(root: Path, split: str, shard: str) -> dict[str, Path]: ...
@overload
def shard_paths(root: RemotePath, split: str, shard: str) -> dict[str, RemotePath]: ...
@overload
def shard_paths(root: Location, split: str, shard: str) -> Mapping[str, Location]: ...
def shard_paths(root: Location, split: str, shard: str) -> Mapping[str, Location]:
    """Where the four files of a shard stand: keys `tar`, `idx`, `manifest`, `commit`."""
    return {
        "tar": root / split / f"{shard}.tar",
        "idx": root / split / f"{shard}.idx",
        "manifest": root / "manifest" / f"{shard}.parquet",
        "commit": root / "commits" / f"{shard}.json",
    }


def dataset_digest(commits: Sequence[ShardCommit]) -> str:
    """sha256 over shard names, tar hashes and manifest hashes, in the order given (sorted by split, then shard)."""
    hasher = hashlib.sha256(f"facemill-{FORMAT_VERSION}\n".encode())
    for commit in commits:
        hasher.update(f"{commit.split}/{commit.shard} {commit.tar_sha256} {commit.manifest_sha256}\n".encode())
    return hasher.hexdigest()


def label_map_sha256(identities: Sequence[str]) -> str:
    """Hash of a label map, `identities[label]`; lengths are hashed too, so that no two maps run together."""
    hasher = hashlib.sha256()
    for name in identities:
        encoded = name.encode()
        hasher.update(len(encoded).to_bytes(8, "little"))
        hasher.update(encoded)
    return hasher.hexdigest()
