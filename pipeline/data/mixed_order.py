"""Orders of several data sets in one stream, mixed by weight.

The stream is cut into rounds of W slots, W being the sum of the weights. In every round the same slots belong to the
same set, those of each set spread evenly, so that each micro-batch has its share; a set's slots go on through all
rounds in the order that it has by itself. So a set is gone through again and again, each time whole, whatever the
others do; and which row stands at which position is arithmetic on the position.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipeline.data.order import FixedEpochs
from pipeline.data.step_plan import EpochOrder


class MixedOrder(FixedEpochs):
    """See `step_plan.Order`. An epoch is as many slots as the sets' epochs have together.

    Args:
        names: of the sets.
        orders: of each set by itself.
        first_rows: of each set, the row of the mix that its row 0 is.
        weights: of each set, its slots in a round.
    """

    def __init__(
        self, names: Sequence[str], orders: Sequence[EpochOrder], first_rows: Sequence[int], weights: Sequence[int]
    ) -> None:
        self._names, self._orders, self._first_rows = names, orders, first_rows
        divisor = math.gcd(*weights)
        self._weights = [weight // divisor for weight in weights]
        self.num_rows = sum(order.epoch_samples for order in orders)
        # the k-th of a set's w slots in a round wants to stand at (k + 1/2) / w of it
        owner = np.repeat(np.arange(len(weights)), self._weights)
        wish = np.concatenate([(np.arange(weight) + 0.5) / weight for weight in self._weights])
        self._owner = owner[np.lexsort((owner, wish))]
        is_own = self._owner == np.arange(len(weights))[:, None]
        # [sets, W + 1]: how many of the round's slots before each are the set's
        self._before = np.concatenate([np.zeros((len(weights), 1), np.int64), is_own.cumsum(axis=1)], axis=1)

    def rows(self, start: int, count: int) -> npt.NDArray[np.int64]:
        """Give the rows at stream positions start … start + count - 1: [count] int64."""
        if start < 0 or count < 0:
            raise ValueError(f"positions count from 0, got start {start}, count {count}")
        owners = self._owner[(start + np.arange(count)) % len(self._owner)]
        result = np.empty(count, np.int64)
        for number, (order, first_row) in enumerate(zip(self._orders, self._first_rows, strict=True)):
            first, stop = self._position(number, start), self._position(number, start + count)
            result[owners == number] = order.rows(first, stop - first) + first_row
        return result

    def describe(self) -> str:
        """What an epoch has of each set, in a line."""
        shares = []
        for name, order, weight in zip(self._names, self._orders, self._weights, strict=True):
            times = self.num_rows * weight / len(self._owner) / order.epoch_samples
            own = f" ({order.describe()})" if order.describe() else ""
            shares.append(f"{name} {weight / len(self._owner):.1%} of the slots, {times:.3g} times an epoch{own}")
        return "mix: " + "; ".join(shares)

    def _position(self, number: int, position: int) -> int:
        """Slots before a stream position that are a set's: its position in that set's own order."""
        rounds, slot = divmod(position, len(self._owner))
        return rounds * self._weights[number] + int(self._before[number, slot])
