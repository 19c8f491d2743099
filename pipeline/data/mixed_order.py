"""Orders of several data sets in one stream, mixed by weight.

The stream is cut into rounds of W slots, W being the sum of the weights. In every round the same slots belong to the
same set, those of each set spread evenly, so that each micro-batch has its share; a set's slots go on through all
rounds in the order that it has by itself. So a set is gone through again and again, each time whole, whatever the
others do; and which row stands at which position is arithmetic on the position.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

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
        self._owner = deal_round(self._weights)
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


def deal_round(weights: Sequence[int]) -> npt.NDArray[np.int64]:
    """Which set each slot of a round belongs to, so that no set is ever a slot or more away from its share.

    By Tijdeman 1980, "The chairman assignment problem": of the sets that are behind by more than a little, the one that
    would be behind too far soonest is next. With n sets none is ever more than 1 − 1 / (2n − 2) of a slot off.

    Args:
        weights: slots of each set in the round; two sets or more.

    Returns:
        [sum of the weights].
    """
    round_slots, parts = sum(weights), 2 * len(weights) - 2
    given = [0] * len(weights)
    owners = np.empty(round_slots, np.int64)
    for slot in range(round_slots):
        # in slots · round_slots, so that all of it is whole numbers
        behind = [weight * (slot + 1) - had * round_slots for weight, had in zip(weights, given, strict=True)]
        waiting = [number for number, lag in enumerate(behind) if lag * parts >= round_slots]
        slack = {n: Fraction(round_slots * (parts - 1) - parts * behind[n], weights[n]) for n in waiting}
        owners[slot] = min(waiting, key=lambda number: (slack[number], number))
        given[owners[slot]] += 1
    return owners
