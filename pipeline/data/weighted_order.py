"""People drawn by weight: every slot is a draw of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from pipeline.config.errors import UserError
from pipeline.data.counter import uniform
from pipeline.data.manifest import SplitIndex
from pipeline.data.order import FixedEpochs
from pipeline.data.people import PhotoTable


class WeightedOrder(FixedEpochs):
    """See `step_plan.Order`. A slot draws a person by weight, then one of their photos, all alike.

    Draws are keyed by (seed, stream position) and independent: photos repeat, and some may wait for long. An epoch is
    as many slots as the split has photos.

    Args:
        split: the samples.
        seed: of the draws.
        power: someone with n photos weighs n to this power.
        factors: [num_labels], multiplied to the weights; None for 1.

    Raises:
        UserError: all weights are 0.
    """

    def __init__(self, split: SplitIndex, seed: int, power: float, factors: npt.NDArray[np.float64] | None) -> None:
        self._table = PhotoTable.create(split)
        self.num_rows = len(self._table.rows)
        counts = self._table.num_photos
        weights = np.where(counts > 0, counts.astype(np.float64) ** power, 0.0)
        self._ends = np.cumsum(weights if factors is None else weights * factors)
        if self._ends[-1] <= 0:
            raise UserError("data.order.weights", "all are 0", "a positive weight for someone in the split")
        self._seed = seed

    def rows(self, start: int, count: int) -> npt.NDArray[np.int64]:
        """Give the rows at stream positions start … start + count - 1: [count] int64."""
        if start < 0 or count < 0:
            raise ValueError(f"positions count from 0, got start {start}, count {count}")
        positions = np.arange(start, start + count)
        drawn = uniform("person by weight", self._seed, positions) * self._ends[-1]
        # rounding may lift a product to the sum itself: nobody stands there
        labels = np.searchsorted(self._ends, np.minimum(drawn, np.nextafter(self._ends[-1], 0)), side="right")
        place = uniform("photo of a person", self._seed, positions) * self._table.num_photos[labels]
        return self._table.rows[self._table.offsets[labels] + place.astype(np.int64)].astype(np.int64)

    def describe(self) -> str:
        """How far the draw is from even, in a line."""
        weights = np.diff(self._ends, prepend=0) / self._ends[-1]
        return f"people drawn by weight, from {weights[weights > 0].min():.1e} to {weights.max():.1e} a slot"


def read_factors(path: Path, split: SplitIndex) -> npt.NDArray[np.float64]:
    """Read a list of weights: [num_labels], 1 for people it lacks.

    Raises:
        UserError: it cannot be read, lacks a column, or has a weight that is no number from 0 on, or nobody of it is
            in the split.
    """
    try:
        table = pa.parquet.read_table(path) if path.suffix == ".parquet" else pa.csv.read_csv(path)
        names = table["identity"].cast(pa.string()).to_pylist()
        weights = table["weight"].cast(pa.float64()).to_numpy()
    except (OSError, KeyError, pa.ArrowException) as error:
        raise UserError(path, str(error).splitlines()[0], "a .csv or .parquet with columns identity, weight") from None
    if not (np.isfinite(weights) & (weights >= 0)).all():
        raise UserError(path, "a weight that is no number from 0 on", "finite weights, none negative")
    factors = np.ones(split.num_labels)
    labels = {name: label for label, name in enumerate(split.identities())}
    known = [(labels[name], weight) for name, weight in zip(names, weights, strict=True) if name in labels]
    if not known:
        raise UserError(path, "nobody of it is in the split", f"identities of {split.name}")
    for label, weight in known:
        factors[label] = weight
    return factors
