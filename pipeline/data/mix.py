"""Several splits as one: rows and labels of all of them, one after another.

Rows of the first set come first, then those of the next. Labels are counted in order of first appearance, so those of
the first set are what they are without the others. The columns are laid down once a node in a file that ranks map, as
those of a single data set are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.config.errors import UserError
from pipeline.data.dataset_format import INDEX_SCHEMA, ShardCommit
from pipeline.data.index_file import index_columns, open_or_build, seal_index
from pipeline.data.manifest import SplitIndex

Labels = Literal["merged", "disjoint", "separate"]
"""See `pipeline.config.mix.MixConfig.labels`."""

_SPLIT = "mix"
# sample ids are counted within a data set; the number of the set makes them unique
_SET_SHIFT = 48


@dataclass(frozen=True)
class MixedSplit(SplitIndex):
    """Splits of several data sets as one, see `SplitIndex`; made by `mix_splits`.

    `shards` are those of all parts. `root`, `cache` and `mirror` are the first part's: who reads bytes goes by `parts`.
    """

    parts: tuple[SplitIndex, ...] = ()
    names: tuple[str, ...] = ()
    """Of the parts."""
    labels: Labels = "merged"
    weights: tuple[int, ...] | None = None
    """Slots of each part in a round of the stream; None: all rows are alike."""

    @property
    def name(self) -> str:
        return " + ".join(part.name for part in self.parts)

    @property
    def label_spaces(self) -> tuple[int, ...]:
        if self.labels == "separate":
            return tuple(part.num_labels for part in self.parts)
        return (self.num_labels,)

    @property
    def first_rows(self) -> npt.NDArray[np.int64]:
        """[parts] the first row of each."""
        return _starts([len(part) for part in self.parts])

    @property
    def first_shards(self) -> npt.NDArray[np.int64]:
        """[parts] the place of each one's first shard among `shards`."""
        return _starts([len(part.shards) for part in self.parts])

    def manifest(self, columns: Sequence[str] | None = None) -> pa.Table:
        return pa.concat_tables([part.manifest(columns) for part in self.parts])

    def keys(self, rows: npt.NDArray[np.int64]) -> list[str]:
        """As `set/key`."""
        owners, found = owner_of(self.first_rows, rows), np.empty(len(rows), object)
        for owner in np.unique(owners).tolist():
            own = np.flatnonzero(owners == owner)
            keys = self.parts[owner].keys(rows[own] - self.first_rows[owner])
            found[own] = [f"{self.names[owner]}/{key}" for key in keys]
        return list(found)

    def identities(self) -> list[str]:
        """Identity of each contiguous label; where people of different sets are not one, `set/identity`."""
        return list(_number_people(_people(self.names, self.parts, self.labels)))

    def commit(self, shard: int) -> ShardCommit:
        number = int(owner_of(self.first_shards, np.array(shard)))
        return self.parts[number].commit(shard - int(self.first_shards[number]))


def mix_splits(
    parts: Mapping[str, SplitIndex], labels: Labels, weights: tuple[int, ...] | None, folder: Path
) -> MixedSplit:
    """Put splits together.

    Args:
        parts: by name, in order.
        labels: who is one person.
        weights: slots of each part in a round; None for all rows alike.
        folder: where the columns of the mix are kept for all processes of the node.

    Raises:
        UserError: the folder cannot be made, or a manifest cannot be read.
    """
    splits, names = tuple(parts.values()), tuple(parts)
    hasher = hashlib.sha256(f"mix {labels}\n".encode())
    for name, split in parts.items():
        hasher.update(f"{name if labels != 'merged' else ''} {split.digest} {split.split}\n".encode())
    digest = hasher.hexdigest()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        remedy = "set data.cache.path=DIR, or XDG_CACHE_HOME"
        raise UserError(folder, f"cannot be made ({error.strerror})", "a folder to write to", remedy) from None
    table = open_or_build(folder / f"{digest[:32]}.arrow", digest, lambda: _build(names, splits, labels, digest))
    columns = index_columns(table, _SPLIT)
    starts = _starts([len(split) for split in splits])
    return MixedSplit(
        root=splits[0].root,
        split=_SPLIT,
        digest=digest,
        shards=[shard for split in splits for shard in split.shards],
        num_labels=int(columns["label"][columns["by_label"][-1]]) + 1 if len(table) else 0,
        withdrawn=np.concatenate([split.withdrawn + start for split, start in zip(splits, starts, strict=True)]),
        cache=splits[0].cache,
        mirror=splits[0].mirror,
        parts=splits,
        names=names,
        labels=labels,
        weights=weights,
        **columns,
    )


def _build(names: Sequence[str], splits: Sequence[SplitIndex], labels: Labels, digest: str) -> pa.Table:
    """The columns of a mix, with `INDEX_SCHEMA`."""
    people = _people(names, splits, labels)
    label_of = _number_people(people)
    columns: dict[str, list[npt.NDArray[np.generic]]] = {field.name: [] for field in INDEX_SCHEMA}
    first_shards = _starts([len(split.shards) for split in splits])
    for number, split in enumerate(splits):
        own = [label_of[person] for person in people[number]]
        columns["shard"].append(split.shard + np.int32(first_shards[number]))
        columns["jpg_offset"].append(split.jpg_offset)
        columns["jpg_size"].append(split.jpg_size)
        columns["jpg_crc32"].append(split.jpg_crc32)
        columns["label"].append(np.array(own, np.int32)[split.label])
        columns["sample_id"].append(split.sample_id | np.int64(number << _SET_SHIFT))
    joined = {name: np.concatenate(values) for name, values in columns.items() if values}
    joined["plan_label"] = joined["label"].astype(np.int64)
    joined["by_label"] = np.argsort(joined["label"], kind="stable").astype(np.int32)
    table = pa.table({field.name: joined[field.name] for field in INDEX_SCHEMA}, schema=INDEX_SCHEMA)
    return seal_index(table, digest, {_SPLIT: (0, len(table))})


def _people(names: Sequence[str], splits: Sequence[SplitIndex], labels: Labels) -> list[list[str]]:
    """Of each split, what its people are called in the mix, by its own labels."""
    if labels == "merged":
        return [split.identities() for split in splits]
    return [
        [f"{name}/{identity}" for identity in split.identities()] for name, split in zip(names, splits, strict=True)
    ]


def _number_people(people: Sequence[Sequence[str]]) -> dict[str, int]:
    """Label of each person of the mix, in the order of labels."""
    label_of: dict[str, int] = {}
    for person in chain.from_iterable(people):
        label_of.setdefault(person, len(label_of))
    return label_of


def owner_of(firsts: npt.NDArray[np.int64], places: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Which part each row or shard of a mix is of, given the first one of every part."""
    return np.asarray(np.searchsorted(firsts, places, side="right") - 1, np.int64)


def _starts(sizes: Sequence[int]) -> npt.NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(sizes)])[:-1].astype(np.int64)
