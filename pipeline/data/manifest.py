"""The contract between preprocessing and training: what a data set holds, and how to open it, here or behind a URL.

A data set is a directory of tar shards, one Parquet manifest per shard, one commit record per shard and
`dataset.json`, which is written last. Everything a reader needs (labels, byte offsets, checksums) stands in the
manifests; `index.arrow` is derived from them, so that every rank maps one file instead of parsing Parquet. Of a remote
data set a node keeps manifests, commit records and index in a `Mirror`; its tars are read by `pipeline.data.store`.

This module imports neither torch nor an image library: preprocessing and command lines use it too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
from pydantic import ValidationError

from pipeline.config.cache import CacheConfig
from pipeline.config.errors import DataError, UserError
from pipeline.config.location import Location, RemotePath, parse_location
from pipeline.data.dataset_format import (
    DESCRIPTION,
    FORMAT_VERSION,
    INDEX,
    INDEX_SCHEMA,
    STATUS_KEPT,
    DatasetInfo,
    ShardCommit,
    dataset_digest,
    shard_paths,
)
from pipeline.data.index_file import index_columns, open_or_build, read_index_file, seal_index
from pipeline.data.mirror import Mirror
from pipeline.data.tombstones import withdrawn_rows


@dataclass(frozen=True)
class SplitIndex:
    """One split's kept rows as columns of equal length N, in (shard, row) order; views of the memory-mapped index."""

    root: Location
    split: str
    digest: str
    """The data set's digest."""
    shards: Sequence[Location]
    """The split's tars; `shard` below points into this list."""
    shard: npt.NDArray[np.int32]
    jpg_offset: npt.NDArray[np.int64]
    jpg_size: npt.NDArray[np.int32]
    jpg_crc32: npt.NDArray[np.uint32]
    label: npt.NDArray[np.int32]
    """Contiguous: 0 … num_labels - 1."""
    plan_label: npt.NDArray[np.int64]
    sample_id: npt.NDArray[np.int64]
    by_label: npt.NDArray[np.int32]
    """All rows, sorted by label, then row."""
    num_labels: int
    withdrawn: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    """Rows that were withdrawn, rising: see `tombstones`. They keep their place in the order."""
    cache: CacheConfig | None = None
    """Where bytes of a remote data set are kept; None: nowhere."""
    mirror: Mirror | None = None
    """The small files of a remote data set; None for a local one."""

    def __len__(self) -> int:
        return len(self.sample_id)

    @property
    def name(self) -> str:
        """What a message calls it."""
        return f"{self.root} ({self.split})"

    @property
    def label_spaces(self) -> tuple[int, ...]:
        """Numbers of labels, in order, within which alone two labels say whether two photos show one person."""
        return (self.num_labels,)

    def manifest(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The manifest's kept rows of this split, row i being row i of the index; `columns` None for all."""
        wanted = None if columns is None else sorted({*columns, "status"})
        names = [path.stem for path in self.shards]
        tables = [read_manifest(path, wanted) for path in local_manifests(self.root, self.mirror, {self.split: names})]
        table = pa.concat_tables(tables)
        table = table.filter(pa.compute.equal(table["status"], STATUS_KEPT))
        return table if columns is None else table.select(list(columns))

    def keys(self, rows: npt.NDArray[np.int64]) -> list[str]:
        """Keys of some rows, from the manifests of the shards that they are in."""
        found: dict[int, str] = {}
        for shard in np.unique(self.shard[rows]).tolist():
            names = {self.split: [self.shards[shard].stem]}
            table = read_manifest(local_manifests(self.root, self.mirror, names)[0], ["key", "status"])
            kept = table.filter(pa.compute.equal(table["status"], STATUS_KEPT))["key"]
            first = int(np.searchsorted(self.shard, shard))
            found |= {row: kept[row - first].as_py() for row in rows[self.shard[rows] == shard].tolist()}
        return [found[row] for row in rows.tolist()]

    def identities(self) -> list[str]:
        """Identity of each contiguous label: `identities()[label]`."""
        names = self.manifest(["identity"])["identity"].combine_chunks()
        first_rows = np.full(self.num_labels, -1, np.int64)
        first_rows[self.label[::-1]] = np.arange(len(self) - 1, -1, -1)
        return names.take(pa.array(first_rows)).to_pylist()

    def commit(self, shard: int) -> ShardCommit:
        """The commit record of a shard, by its position in `shards`.

        Raises:
            DataError: it is missing or unreadable.
        """
        place = shard_paths(self.root, self.split, self.shards[shard].stem)["commit"]
        return _read_commit(place if isinstance(place, Path) else _mirror(self.mirror).file(place))


@dataclass(frozen=True)
class Dataset:
    """An opened data set: its root and the content of `dataset.json`."""

    root: Location
    info: DatasetInfo
    cache: CacheConfig | None = None
    """Where bytes of a remote data set are kept; None: nowhere."""
    mirror: Mirror | None = None
    """The small files of a remote data set; None for a local one."""

    @property
    def folder(self) -> Path:
        """The root of a local data set.

        Raises:
            UserError: it is a remote one.
        """
        if isinstance(self.root, RemotePath):
            raise UserError(self.root, "a URL", "a data set in a local folder", "do this where the data set was made")
        return self.root

    def manifests(self, columns: Sequence[str]) -> Iterator[tuple[str, str, pa.Table]]:
        """Split, shard and manifest of each shard of a local data set, in order: see `read_manifest`.

        Raises:
            UserError: it is a remote one; `DataError`: a manifest cannot be read.
        """
        for split, info in self.info.splits.items():
            for shard in info.shards:
                path = shard_paths(self.folder, split, shard)["manifest"]
                yield split, shard, read_manifest(path, columns, self.root)

    def split(self, name: str) -> SplitIndex:
        """Map one split's index, building `index.arrow` first where it is missing or stale.

        Raises:
            UserError: the data set has no such split; `DataError`: a manifest is missing or unreadable.
        """
        if name not in self.info.splits:
            raise UserError(self.root, f"no split {name!r}", f"one of {', '.join(sorted(self.info.splits))}")
        columns = index_columns(_open_index(self), name)
        return SplitIndex(
            root=self.root,
            split=name,
            digest=self.info.digest,
            shards=[shard_paths(self.root, name, shard)["tar"] for shard in self.info.splits[name].shards],
            num_labels=self.info.splits[name].num_identities,
            withdrawn=withdrawn_rows(self.root, columns["sample_id"]),
            cache=self.cache,
            mirror=self.mirror,
            **columns,
        )


def open_dataset(path: str | os.PathLike[str] | RemotePath, cache: CacheConfig | None = None) -> Dataset:
    """Open a finished data set.

    Args:
        path: a directory, or a URL of an allowed scheme.
        cache: where bytes of a remote data set are kept; a local one is read where it stands.

    Raises:
        UserError: no such directory, no `dataset.json` (an unfinished or foreign directory), a format this version
            does not read, or a URL that is refused or does not answer; `DataError`: a damaged `dataset.json`.
    """
    root = parse_location(path)
    if isinstance(root, RemotePath):
        content = Mirror.read(root / DESCRIPTION)
        info = _parse_info(root / DESCRIPTION, content)
        return Dataset(root, info, cache, Mirror.of(root, content, None if cache is None else cache.path))
    description = root / DESCRIPTION
    if not root.is_dir():
        raise UserError(root, "no such directory", "a data set", "make one with: preprocess shard SRC OUT")
    if not description.is_file():
        started = (root / "commits").is_dir()
        remedy = "repeat the same `preprocess shard` command to finish it" if started else "preprocess shard SRC OUT"
        raise UserError(root, "dataset.json is missing", "a finished data set", remedy)
    try:
        return Dataset(root=root, info=_parse_info(description, description.read_bytes()))
    except OSError as error:
        raise DataError(description, f"not a data set description ({error})") from error


def _parse_info(where: Location, text: bytes) -> DatasetInfo:
    try:
        content = json.loads(text)
        version = content.get("format_version") if isinstance(content, dict) else None
        if version != FORMAT_VERSION:
            raise UserError(where, f"format version {version}", f"version {FORMAT_VERSION}")
        return DatasetInfo.model_validate(content)
    except (ValueError, ValidationError) as error:
        raise DataError(where, f"not a data set description ({str(error).splitlines()[0]})") from error


def local_manifests(root: Location, mirror: Mirror | None, shards: Mapping[str, Sequence[str]]) -> list[Path]:
    """Files of the manifests of some shards by split, in the order given; of a remote data set fetched if need be.

    Raises:
        UserError: one cannot be fetched, or is not the one that its commit record names.
    """
    wanted = [(split, shard) for split, names in shards.items() for shard in names]
    if isinstance(root, Path):
        return [shard_paths(root, *names)["manifest"] for names in wanted]
    places = [shard_paths(root, *names) for names in wanted]
    remote = _mirror(mirror)
    commits = [_read_commit(path) for path in remote.files([(place["commit"], None) for place in places])]
    return remote.files(
        [(place["manifest"], commit.manifest_sha256) for place, commit in zip(places, commits, strict=True)]
    )


def _check_commits(dataset: Dataset) -> None:
    """See that a remote data set's commit records are those that its `dataset.json` was written for.

    A copy that ended early, or one that is under way, may hold the description of one version and shards of another:
    bytes and manifests that fit their commit records, under a digest that is not theirs.

    Raises:
        UserError: they are not, or one cannot be fetched.
    """
    mirror, root = _mirror(dataset.mirror), dataset.root
    assert isinstance(root, RemotePath)
    names = [(split, shard) for split, description in dataset.info.splits.items() for shard in description.shards]
    files = mirror.files([(shard_paths(root, *name)["commit"], None) for name in names])
    commits = [_read_commit(path) for path in files]
    if [(commit.split, commit.shard) for commit in commits] == names and dataset_digest(commits) == dataset.info.digest:
        return
    for path in files:  # the next attempt is to see what stands there by then
        path.unlink(missing_ok=True)
    raise DataError(
        root / "commits",
        "not the commit records that dataset.json was written for",
        "a whole copy of one version of a data set",
        "copy the data set there again, with its dataset.json",
    )


def _mirror(mirror: Mirror | None) -> Mirror:
    assert mirror is not None, "a remote data set has a mirror"
    return mirror


def _read_commit(path: Path) -> ShardCommit:
    try:
        return ShardCommit.model_validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(path, f"unreadable commit record ({reason})", remedy="preprocess verify DATA") from error


def read_manifest(path: Path, columns: Sequence[str] | None = None, data: Location | str = "DATA") -> pa.Table:
    """A shard's manifest: all its rows, rejects included; `columns` None for all.

    `data` is the data set that a message names.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return pq.read_table(path, columns=None if columns is None else list(columns))
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise DataError(path, f"unreadable manifest ({reason})", remedy=f"preprocess verify {data}") from error


def read_index(dataset: Dataset) -> pa.Table | None:
    """`index.arrow` as it stands: see `read_index_file`."""
    return read_index_file(_index_path(dataset), dataset.info.digest)


def _index_path(dataset: Dataset) -> Path:
    return dataset.root / INDEX if isinstance(dataset.root, Path) else _mirror(dataset.mirror).folder / INDEX


def _open_index(dataset: Dataset) -> pa.Table:
    path, digest = _index_path(dataset), dataset.info.digest
    if isinstance(dataset.root, Path):
        return open_or_build(path, digest, lambda: build_index(dataset))
    with _mirror(dataset.mirror).locked():  # one rank of a node builds it, the others wait
        return open_or_build(path, digest, lambda: build_index(dataset))


def build_index(dataset: Dataset) -> pa.Table:
    """The content of `index.arrow` from the manifests: `INDEX_SCHEMA`, and in the metadata each split's range of rows.

    Raises:
        UserError: a manifest is missing or unreadable, or `dataset.json` counts other samples or identities.
    """
    if isinstance(dataset.root, RemotePath):
        _check_commits(dataset)
    wanted = ["status", "jpg_offset", "jpg_size", "jpg_crc32", "label", "sample_id"]
    parts: list[pa.Table] = []
    ranges: dict[str, tuple[int, int]] = {}
    num_rows = 0
    for split in sorted(dataset.info.splits):
        tables = []
        names = {split: dataset.info.splits[split].shards}
        for number, path in enumerate(local_manifests(dataset.root, dataset.mirror, names)):
            table = read_manifest(path, wanted)
            table = table.filter(pa.compute.equal(table["status"], STATUS_KEPT)).drop_columns(["status"])
            tables.append(table.append_column("shard", pa.array(np.full(len(table), number, np.int32))))
        if not tables:
            ranges[split] = (num_rows, num_rows)
            continue
        merged = pa.concat_tables(tables)
        plan_label = merged["label"].to_numpy()
        unique, contiguous = np.unique(plan_label, return_inverse=True)
        expected = dataset.info.splits[split]
        if (len(merged), len(unique)) != (expected.num_samples, expected.num_identities):
            raise DataError(
                dataset.root,
                f"split {split!r}: the manifests hold {len(merged)} samples of {len(unique)} identities",
                f"{expected.num_samples} of {expected.num_identities} as dataset.json says",
                "preprocess verify DATA",
            )
        merged = merged.drop_columns(["label"])
        merged = merged.append_column("label", pa.array(contiguous.astype(np.int32)))
        merged = merged.append_column("plan_label", pa.array(plan_label))
        merged = merged.append_column("by_label", pa.array(np.argsort(contiguous, kind="stable").astype(np.int32)))
        parts.append(merged.select(INDEX_SCHEMA.names).cast(INDEX_SCHEMA))
        ranges[split] = (num_rows, num_rows + len(merged))
        num_rows += len(merged)
    table = pa.concat_tables(parts) if parts else INDEX_SCHEMA.empty_table()
    return seal_index(table.combine_chunks(), dataset.info.digest, ranges)
