"""A round's mined list as a file: written whole or not at all, known by its hash.

`mined/round-000012.arrow` in a run's directory is an Arrow IPC file with a line for each group: the rows of the anchor,
its positive and its negatives, and two distances. A checkpoint that was written while a list was in use names the file
and the hash of its bytes, for the order of samples depends on both.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.atomic_write import write_atomically
from pipeline.config.errors import UserError

DIRECTORY = "mined"
_METADATA_KEY = b"facemill"


@dataclass(frozen=True)
class MinedList:
    """Groups of hard examples of one round."""

    number: int
    """Of the round, from 1."""
    rows: npt.NDArray[np.int64]
    """[L, 2 + negatives] rows of the split's index: anchor, positive, negatives from the nearest on; L at least 1."""
    metrics: dict[str, float]
    """What the round found, over all its anchors."""
    content: bytes
    """The file."""

    @property
    def sha256(self) -> str:
        """Hash of the file: joins the key of the order."""
        return hashlib.sha256(self.content).hexdigest()

    @property
    def file(self) -> str:
        """The file's path in the run's directory."""
        return f"{DIRECTORY}/round-{self.number:06d}.arrow"


def make_list(
    number: int,
    rows: npt.NDArray[np.int64],
    positive_distance: npt.NDArray[np.float32],
    negative_distance: npt.NDArray[np.float32],
    metrics: Mapping[str, float],
) -> MinedList:
    """Put a list together; the same arguments give the same bytes.

    Args:
        number: of the round.
        rows: [L, 2 + negatives].
        positive_distance: [L], from the anchor to the positive.
        negative_distance: [L], from the anchor to the first negative.
        metrics: what to report while the list is in use.
    """
    names = ["anchor", "positive", *(f"negative_{place}" for place in range(1, rows.shape[1] - 1))]
    columns = {name: np.ascontiguousarray(column) for name, column in zip(names, rows.T, strict=True)}
    table = pa.table({**columns, "positive_distance": positive_distance, "negative_distance": negative_distance})
    metadata = {"round": number, "metrics": dict(metrics)}
    table = table.replace_schema_metadata({_METADATA_KEY: json.dumps(metadata)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return MinedList(number, rows, dict(metrics), sink.getvalue().to_pybytes())


def write_list(output: Path, mined: MinedList) -> None:
    """Write the file into a run's directory: aside, synced, renamed."""
    write_atomically(output / mined.file, mined.content)


def read_list(path: Path, sha256: str) -> MinedList:
    """Read a list that a checkpoint names.

    Raises:
        UserError: the file cannot be read or is another one.
    """
    remedy = "restore it, or write the name of an earlier checkpoint into checkpoints/latest"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(path, error.strerror or str(error), "the mined list of the checkpoint", remedy) from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise UserError(path, f"changed since the checkpoint (sha256 {found[:12]}…)", f"{sha256[:12]}…", remedy)
    table = pa.ipc.open_file(content).read_all()
    metadata = json.loads(table.schema.metadata[_METADATA_KEY])
    members = [name for name in table.column_names if not name.endswith("_distance")]
    rows = np.stack([table[name].to_numpy() for name in members], axis=1)
    return MinedList(metadata["round"], rows, metadata["metrics"], content)


def prune_lists(output: Path, kept: Collection[str]) -> None:
    """Remove all lists of a run but those whose `file` is in `kept`, and what a killed writer left."""
    for path in (output / DIRECTORY).glob("*"):
        if f"{DIRECTORY}/{path.name}" not in kept:
            path.unlink(missing_ok=True)
