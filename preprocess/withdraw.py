"""`preprocess withdraw`: find what is to be withdrawn, write the tombstones, take the ledger's thumbnails away."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.errors import UserError
from pipeline.data.manifest import open_dataset
from pipeline.data.tombstones import TOMBSTONES_FILE, TOMBSTONES_SCHEMA, read_tombstones
from preprocess.drivers.local import exclusive
from preprocess.ledger import remove_from_ledger
from preprocess.storage import work_folder, write_parquet

_COLUMNS = ("sample_id", "key", "identity", "source_sha256", "status")
_SELECTORS = ("key", "identity", "source_sha256")


@dataclass(frozen=True)
class Withdrawn:
    """What a call did."""

    num_new: int
    num_before: int
    """Of those asked for, withdrawn already."""
    num_thumbnails: int
    """Rows taken out of the ledger of rejects."""


def withdraw(out: Path, wanted: Mapping[str, Collection[str]], reason: str) -> Withdrawn:
    """Withdraw samples by column and value.

    Args:
        out: a finished data set.
        wanted: values by `key`, `identity` or `source_sha256`.
        reason: for the record.

    Raises:
        UserError: no data set, nothing asked for, or a value that no sample has: a name that is mistyped must not
            look like one that is gone.
    """
    dataset = open_dataset(out)
    out = dataset.folder
    if not any(wanted.values()):
        raise UserError("preprocess withdraw", "nothing to withdraw", "--key, --identity, --source-sha256 or --list")
    with exclusive(out):
        before = read_tombstones(out)
        known = set(before["sample_id"].to_pylist())
        missing = {name: set(values) for name, values in wanted.items()}
        found: list[pa.Table] = []
        keys_of: dict[str, set[str]] = {}
        num_before = 0
        for _, shard, table in dataset.manifests(_COLUMNS):
            chosen = _matches(table, wanted)
            for name in _SELECTORS:
                missing.get(name, set()).difference_update(chosen[name].to_pylist())
            num_before += sum(number in known for number in chosen["sample_id"].to_pylist())
            found.append(chosen)
            keys_of[shard] = set(chosen["key"].to_pylist())
        for name, values in missing.items():
            if values:
                raise UserError(f"--{name.replace('_', '-')}", sorted(values)[0], f"one that {out} has")
        rows = pa.concat_tables(found)
        new = rows.filter(pc.invert(pc.is_in(rows["sample_id"], pa.array(sorted(known), pa.int64()))))
        if len(new):
            reasons = pa.array([reason] * len(new), pa.string())
            columns = {name: new[name] for name in ("sample_id", "key", "source_sha256")} | {"reason": reasons}
            merged = pa.concat_tables([before, pa.table(columns, schema=TOMBSTONES_SCHEMA)]).sort_by("sample_id")
            write_parquet(merged, out / TOMBSTONES_FILE, work_folder(out))
        # also those withdrawn before: a call that was killed in between is made good by the same call
        num_thumbnails = sum(remove_from_ledger(out, shard, keys) for shard, keys in keys_of.items())
        with suppress(OSError):  # it was never made, or is another's
            work_folder(out).rmdir()
    return Withdrawn(len(new), num_before, num_thumbnails)


def read_list(path: Path) -> dict[str, list[str]]:
    """A list of what to withdraw: a line each, a key, or `identity:NAME`, `source_sha256:HASH`, `key:KEY`.

    Raises:
        UserError: it cannot be read.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(path, f"cannot be read ({error})", "a text file") from None
    wanted: dict[str, list[str]] = {name: [] for name in _SELECTORS}
    for line in filter(None, map(str.strip, lines)):
        name, separator, value = line.partition(":")
        if separator and name in _SELECTORS:
            wanted[name].append(value)
        else:
            wanted["key"].append(line)
    return wanted


def _matches(table: pa.Table, wanted: Mapping[str, Collection[str]]) -> pa.Table:
    chosen = [pc.is_in(table[name], pa.array(sorted(values), pa.string())) for name, values in wanted.items() if values]
    mask = chosen[0]
    for other in chosen[1:]:
        mask = pc.or_(mask, other)
    return table.filter(mask)
