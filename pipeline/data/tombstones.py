"""Samples that were withdrawn after a data set was made: a person's right, and no change of digest or order.

`tombstones.parquet` names them by sample id. A withdrawn row keeps its place in the order, but no reader of ours gives
its bytes: its slot is masked and counted. `preprocess compact` writes a data set without them.

This module belongs to the contract between preprocessing and training, as `manifest` does.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.errors import DataError
from pipeline.config.location import Location
from pipeline.data.mirror import Mirror

TOMBSTONES_FILE = "tombstones.parquet"
TOMBSTONES_SCHEMA = pa.schema(
    [
        ("sample_id", pa.int64()),
        ("key", pa.string()),
        ("source_sha256", pa.string()),  # so that a later version knows the photo again
        ("reason", pa.string()),
    ]
)


def read_tombstones(root: Location) -> pa.Table:
    """The withdrawn samples of a data set, with `TOMBSTONES_SCHEMA`; none where there is no file.

    Raises:
        DataError: the file cannot be read. Going on without it would show photos that were withdrawn.
    """
    path = root / TOMBSTONES_FILE
    try:
        if isinstance(path, Path):
            return pq.read_table(path).cast(TOMBSTONES_SCHEMA)
        # not of a mirror: it changes while the data set stays as it is
        content = Mirror.read_if_there(path)
        if content is None:
            return TOMBSTONES_SCHEMA.empty_table()
        return pq.read_table(pa.BufferReader(content)).cast(TOMBSTONES_SCHEMA)
    except FileNotFoundError:
        return TOMBSTONES_SCHEMA.empty_table()
    except (OSError, ValueError, pa.ArrowException) as error:
        found = f"cannot be read ({str(error).splitlines()[0]})"
        raise DataError(
            path, found, "the list of withdrawn samples", "restore it: without it they would be read"
        ) from None


def withdrawn_rows(root: Location, sample_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Rows of a split whose samples are withdrawn.

    Args:
        root: the data set.
        sample_ids: [N] of the split's rows.

    Returns:
        [W] int64, rising.
    """
    table = read_tombstones(root)
    if not len(table):
        return np.empty(0, np.int64)
    return np.flatnonzero(np.isin(sample_ids, table["sample_id"].to_numpy()))
