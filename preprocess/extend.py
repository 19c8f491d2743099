"""A new version of a data set: labels, splits, keys and withdrawals stay when photos are added.

    preprocess shard photos data-2 --extends data

A person who had a usable photo keeps label and split, all others get labels after those. So the contiguous labels of
training (`SplitIndex.label`) stay too, as long as each old person still has a usable photo in the new version.
A photo is known again by identity, path and, in a container, offset; it keeps its sample id and so its key.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.dataset_format import STATUS_KEPT, shard_paths
from pipeline.data.manifest import open_dataset, read_manifest
from pipeline.data.tombstones import TOMBSTONES_FILE, TOMBSTONES_SCHEMA, read_tombstones
from preprocess.plan import VAL, Plan, ShardOptions, deal, load_plan, number_identities, smallest_hashes
from preprocess.storage import work_folder, write_parquet

_CARRIED_REASON = "the same photo was withdrawn from an earlier version"


def extend_plan(listing: pa.Table, options: ShardOptions, data: Path, say: Callable[[str], None]) -> Plan:
    """Deal the listing's rows as `build_plan` does, but for what an earlier version fixed.

    Of the new people, the share `val_identities` goes to `val`.

    Args:
        listing: all photos of the new version, old and new, as for `build_plan`.
        options: see `ShardOptions`.
        data: the earlier version, a finished data set.
        say: told what stayed, came and went.

    Raises:
        UserError: the earlier version is not a finished data set.
    """
    open_dataset(data)
    old = load_plan(data)
    had_photos = _people_with_photos(data)
    split_of = dict(zip(old.rows["identity"].to_pylist(), old.rows["split"].to_pylist(), strict=True))
    encoded, numbers = number_identities(listing["identity"])
    names = [name.decode() for name in encoded]
    comes = [name for name in names if name not in had_photos]
    first = int(pc.max(old.rows["label"]).as_py()) + 1
    label_of = had_photos | {name: first + number for number, name in enumerate(comes)}
    labels = np.array([label_of[name] for name in names], np.int64)[numbers]
    unknown = [name.encode() for name in names if name not in split_of]
    drawn = smallest_hashes(unknown, round(options.val_identities * len(unknown)), options.seed)
    goes_to_val = {name for name, is_drawn in zip(unknown, drawn.tolist(), strict=True) if is_drawn}
    is_val = np.array([split_of.get(name.decode()) == VAL or name in goes_to_val for name in encoded])[numbers]
    sample_ids, num_known = _sample_ids(listing, old, data)
    num_gone = len(old.rows) - num_known
    gone = had_photos.keys() - set(names)
    say(
        f"extends {data}: {num_known:,} photos known, {len(listing) - num_known:,} new, {num_gone:,} gone; "
        f"{len(comes):,} people get new labels"
    )
    if gone:
        say(
            f"{len(gone):,} people have no photo any more, such as {min(gone)}: in training, the labels after theirs "
            "move up; launch/extend_head.py goes by name"
        )
    return deal(listing, options, sample_ids, labels, is_val)


def carry_tombstones(data: Path, plan: Plan, out: Path) -> None:
    """Withdraw from a new version, not yet described, what was withdrawn from the earlier one.

    Photos go by their sample ids and, where they came back under another name, by the hash of the file.
    """
    theirs, ours = read_tombstones(data), read_tombstones(out)
    if not len(theirs):
        return
    hashes = pa.array(sorted({text for text in theirs["source_sha256"].to_pylist() if text}), pa.string())
    known = set(ours["sample_id"].to_pylist())
    tables = [ours, theirs.filter(pc.invert(pc.is_in(theirs["sample_id"], pa.array(sorted(known), pa.int64()))))]
    known.update(theirs["sample_id"].to_pylist())
    for number in range(plan.num_shards):
        shard = plan.shard(number)
        path = shard_paths(out, shard.split, shard.name)["manifest"]
        rows = read_manifest(path, ["sample_id", "key", "source_sha256"])
        rows = rows.filter(pc.is_in(rows["source_sha256"], hashes))
        rows = rows.filter(pc.invert(pc.is_in(rows["sample_id"], pa.array(sorted(known), pa.int64()))))
        tables.append(rows.append_column("reason", pa.array([_CARRIED_REASON] * len(rows), pa.string())))
    merged = pa.concat_tables([table.cast(TOMBSTONES_SCHEMA) for table in tables]).sort_by("sample_id")
    write_parquet(merged, out / TOMBSTONES_FILE, work_folder(out))


def _people_with_photos(data: Path) -> dict[str, int]:
    """The label of each identity that has a kept photo.

    Someone whose photos were all rejects had no class in training, and would push in between if they got one now.
    """
    label_of: dict[str, int] = {}
    for _, _, table in open_dataset(data).manifests(["identity", "label", "status"]):
        kept = table.filter(pc.equal(table["status"], STATUS_KEPT)).group_by(["identity", "label"]).aggregate([])
        label_of.update(zip(kept["identity"].to_pylist(), kept["label"].to_pylist(), strict=True))
    return label_of


def _sample_ids(listing: pa.Table, old: Plan, data: Path) -> tuple[npt.NDArray[np.int64], int]:
    """The sample id of each row of a listing, and how many of them are the earlier version's."""
    waiting: dict[tuple[object, ...], deque[int]] = defaultdict(deque)
    by_number = old.rows.sort_by("sample_id")
    for place, sample_id in zip(_places(by_number), by_number["sample_id"].to_pylist(), strict=True):
        waiting[place].append(sample_id)
    # numbers that were ever given, to photos that were withdrawn and are gone too, are not given again
    withdrawn = read_tombstones(data)["sample_id"].to_pylist()
    following = max([by_number["sample_id"][-1].as_py(), *withdrawn]) + 1
    sample_ids = np.empty(len(listing), np.int64)
    num_known = 0
    for row, place in enumerate(_places(listing)):
        queue = waiting.get(place)
        if queue:
            sample_ids[row] = queue.popleft()
            num_known += 1
        else:
            sample_ids[row] = following
            following += 1
    return sample_ids, num_known


def _places(rows: pa.Table) -> list[tuple[object, ...]]:
    columns = [name for name in ("identity", "source", "offset") if name in rows.column_names]
    values = [rows[name].to_pylist() for name in columns]
    if len(values) == 2:  # photos in files of their own
        values.append([None] * len(rows))
    return list(zip(*values, strict=True))
