"""Which rank is called slow, when, and what for."""

from __future__ import annotations

from pipeline.engine.slow_ranks import SlowRanks
from pipeline.engine.window import STEP_STAGES, RankCost, WindowCost
from pipeline.progress import Stage


def cost(*ranks: dict[Stage, float], elapsed_s: float = 10.0) -> WindowCost:
    return WindowCost({}, [RankCost(dict.fromkeys(STEP_STAGES, 0.0) | rank, 0, 0) for rank in ranks], elapsed_s)


def usual() -> dict[Stage, float]:
    return {Stage.DATA: 0.01, Stage.FORWARD: 0.1, Stage.COMMUNICATION: 0.1}


SLOW_DATA = {Stage.DATA: 0.2, Stage.FORWARD: 0.11, Stage.COMMUNICATION: 0.0}


def test_a_rank_that_stays_slow_is_named_once_with_its_stage() -> None:
    ranks = SlowRanks(1.5, 25.0, ["a", "b", "c"])
    window = cost(usual(), SLOW_DATA, usual())
    assert ranks.look(window) == []
    assert ranks.look(window) == []
    (line,) = ranks.look(window)
    assert line == (
        "slow rank 1 (b) for 30 s: 0.310 s a step of its own where the median rank takes 0.110 s, most of it in data "
        "(0.200 s against 0.010 s)"
    )
    assert ranks.look(window) == []
    assert ranks.look(cost(usual(), usual(), usual())) == ["rank 1 keeps pace again"]


def test_a_rank_that_is_slow_now_and_then_is_not_named() -> None:
    ranks = SlowRanks(1.5, 25.0, ["a", "b"])
    for _ in range(5):
        assert ranks.look(cost(SLOW_DATA, usual(), elapsed_s=20)) == []
        assert ranks.look(cost(usual(), usual(), elapsed_s=20)) == []


def test_of_two_ranks_the_quicker_one_is_the_yardstick() -> None:
    (line,) = SlowRanks(1.5, 0.0, ["a", "b"]).look(cost(SLOW_DATA, usual()))
    assert line.startswith("slow rank 0 (a)")


def test_waiting_for_others_makes_no_rank_slow() -> None:
    waiting = usual() | {Stage.COMMUNICATION: 100.0}
    assert SlowRanks(1.5, 0.0, ["a", "b", "c"]).look(cost(usual(), waiting, usual())) == []
