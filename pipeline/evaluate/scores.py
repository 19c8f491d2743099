"""The distance of each measured pair, as `scores.parquet` keeps it beside `evaluation.json`: what comparisons join.

A row a pair, in the order of the pair list. The schema's metadata names the version of this layout and the hash of the
pair list.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.errors import UserError
from pipeline.evaluate.pairs import Pair
from pipeline.evaluate.result import write_bytes
from pipeline.evaluate.verification import Bools, Floats, Ints, require_finite

SCHEMA_VERSION = 1
_VERSION_KEY, _PAIRS_KEY = b"facemill.scores_schema_version", b"facemill.pairs_sha256"
_EXPECTED = "the scores.parquet that launch/evaluate.py wrote"
_MAX_DISTANCE = 4.0 + 1e-6
"""Of unit vectors, with room for rounding."""

_SCHEMA = pa.schema(
    [
        pa.field("left", pa.string(), nullable=False),
        pa.field("right", pa.string(), nullable=False),
        pa.field("left_identity", pa.string()),
        pa.field("right_identity", pa.string()),
        pa.field("same", pa.bool_(), nullable=False),
        pa.field("fold", pa.int64(), nullable=False),
        pa.field("squared_distance", pa.float64(), nullable=False),
    ]
)


@dataclass(frozen=True)
class Scores:
    """Scored pairs of one model on one test set."""

    table: pa.Table
    """The columns of `scores.parquet`."""
    pairs_sha256: str

    @property
    def same(self) -> Bools:
        """[P] the truth."""
        return np.asarray(self.table["same"].to_numpy(), bool)

    @property
    def fold(self) -> Ints:
        """[P] fold numbers, from 0."""
        return np.asarray(self.table["fold"].to_numpy(), np.int64)

    @property
    def distances(self) -> Floats:
        """[P] squared distances."""
        return np.asarray(self.table["squared_distance"].to_numpy(), np.float64)

    @property
    def has_identities(self) -> bool:
        """Whether it is known who is on the photos."""
        return self.table["left_identity"].null_count == 0

    def people(self) -> tuple[Ints, Ints]:
        """[P] and [P] numbers of the people of each pair, as `intervals.resample` takes them."""
        if not self.has_identities:
            return np.arange(len(self.table)), np.arange(len(self.table))
        names = [self.table[side].to_numpy() for side in ("left_identity", "right_identity")]
        numbers = np.unique(np.concatenate(names).astype(str), return_inverse=True)[1]
        return numbers[: len(self.table)], numbers[len(self.table) :]


def write_scores(
    path: Path, pairs: Sequence[Pair], distances: Floats, pairs_sha256: str, *, has_identities: bool = True
) -> str:
    """Write the file; the final name never bears a partial one.

    Args:
        path: where to.
        pairs: P measured pairs, in the list's order.
        distances: [P] squared distances.
        pairs_sha256: of the pair list.
        has_identities: False where it is not known who is on the photos, as of a `.bin` file.

    Returns:
        The file's sha256, by which `evaluation.json` knows that it belongs to it.

    Raises:
        UserError: the system refuses.
    """
    columns: dict[str, object] = {
        "left": [str(pair.left) for pair in pairs],
        "right": [str(pair.right) for pair in pairs],
        "left_identity": [pair.left.identity if has_identities else None for pair in pairs],
        "right_identity": [pair.right.identity if has_identities else None for pair in pairs],
        "same": [pair.same for pair in pairs],
        "fold": [pair.fold for pair in pairs],
        "squared_distance": distances,
    }
    metadata = {_VERSION_KEY: str(SCHEMA_VERSION), _PAIRS_KEY: pairs_sha256}
    table = pa.table(columns, schema=_SCHEMA).replace_schema_metadata(metadata)
    content = io.BytesIO()
    pq.write_table(table, content, compression="zstd")
    write_bytes(path, content.getvalue())
    return hashlib.sha256(content.getvalue()).hexdigest()


def read_scores(path: Path) -> Scores:
    """Read the file.

    Raises:
        UserError: missing, damaged, of another version, or with distances that no unit vectors have.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else str(error).splitlines()[0]
        raise UserError(path, f"cannot be read ({reason})", _EXPECTED, "evaluate again") from None
    metadata = table.schema.metadata or {}
    version = metadata.get(_VERSION_KEY, b"none").decode("utf-8", "replace")
    if version != str(SCHEMA_VERSION):
        raise UserError(path, f"schema version {version}", f"version {SCHEMA_VERSION}", "evaluate again")
    if not table.schema.equals(_SCHEMA) or _PAIRS_KEY not in metadata:
        raise UserError(path, f"columns {', '.join(table.column_names)}", _EXPECTED, "evaluate again")
    scores = Scores(table, metadata[_PAIRS_KEY].decode("ascii", "replace"))
    distances = scores.distances
    require_finite(distances, str(path))
    if len(distances) and not (distances.min() >= 0.0 and distances.max() <= _MAX_DISTANCE):
        found = f"squared distances from {distances.min():g} to {distances.max():g}"
        raise UserError(path, found, "0 to 4, as between vectors of length 1")
    num_unknown = {table[name].null_count for name in ("left_identity", "right_identity")}
    if num_unknown not in ({0}, {len(table)}):
        raise UserError(path, "identities of some pairs only", "of all, or of none", "evaluate again")
    return scores
