"""Which rank is persistently slower than the others, and at what."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median_low

from pipeline.engine.window import OWN_STAGES, WindowCost


class SlowRanks:
    """Watches the ranks' own time, window by window, and says when one begins or ceases to be slow.

    A rank's own time is what it spends outside of collectives: all ranks take equally long for a step, because the
    quick ones wait there for the slow ones. The yardstick is the median rank, of two the quicker one.

    Args:
        factor: a rank is slow from so many times the median on.
        after_s: how long it has to be slow in every window before it is worth a line.
        hosts: by rank.
    """

    def __init__(self, factor: float, after_s: float, hosts: Sequence[str]) -> None:
        self._factor, self._after_s, self._hosts = factor, after_s, hosts
        self._slow_s: dict[int, float] = {}
        self._named: set[int] = set()

    def look(self, cost: WindowCost) -> list[str]:
        """Take in a window; gives the lines to show, mostly none."""
        own_s = [rank.own_s for rank in cost.ranks]
        median_s = median_low(own_s)
        lines = []
        for rank, value in enumerate(own_s):
            if value <= self._factor * median_s:
                self._slow_s.pop(rank, None)
                if rank in self._named:
                    self._named.remove(rank)
                    lines.append(f"rank {rank} keeps pace again")
                continue
            self._slow_s[rank] = self._slow_s.get(rank, 0.0) + cost.elapsed_s
            if self._slow_s[rank] >= self._after_s and rank not in self._named:
                self._named.add(rank)
                lines.append(self._describe(rank, median_s, cost))
        return lines

    def _describe(self, rank: int, median_s: float, cost: WindowCost) -> str:
        stage_s = cost.ranks[rank].stage_s
        usual_s = {stage: median_low([other.stage_s[stage] for other in cost.ranks]) for stage in OWN_STAGES}
        stage = max(OWN_STAGES, key=lambda stage: stage_s[stage] - usual_s[stage])
        return (
            f"slow rank {rank} ({self._hosts[rank]}) for {self._slow_s[rank]:.0f} s: {cost.ranks[rank].own_s:.3f} s a "
            f"step of its own where the median rank takes {median_s:.3f} s, most of it in {stage} "
            f"({stage_s[stage]:.3f} s against {usual_s[stage]:.3f} s)"
        )
