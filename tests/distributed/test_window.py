"""What ranks tell each other once a window or an epoch."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline import dist
from pipeline.engine.seen_classes import SeenClasses
from pipeline.engine.window import Window
from pipeline.progress import PROGRESS, Stage
from tests.distributed.processes import run_ranks


def step(labels: list[int], valid: list[bool]) -> Any:
    return SimpleNamespace(micro_batches=[SimpleNamespace(labels=torch.tensor(labels), valid=torch.tensor(valid))])


def close_a_window() -> tuple[dict[str, float], list[float]]:
    window = Window(torch.device("cpu"))
    for _ in range(4):
        with PROGRESS.during(Stage.FORWARD):
            time.sleep(0.05 if dist.rank() == 1 else 0.001)
        dist.barrier()
        window.add(wait_s=0.0, samples=8)
    cost = window.close()
    return cost.metrics, [rank.own_s for rank in cost.ranks]


def test_all_ranks_know_what_each_one_took() -> None:
    (metrics, own_s), other = run_ranks(close_a_window, 2)
    assert other[0].keys() == metrics.keys()
    assert (other[0]["rank_own_s_max"], other[1]) == (metrics["rank_own_s_max"], own_s)
    assert metrics["slowest_rank"] == 1
    assert own_s[1] >= 0.05
    assert own_s[0] < own_s[1]
    # the quick rank waits for the slow one
    assert metrics["time/communication_s"] * 2 >= 0.04
    stages = sum(value for name, value in metrics.items() if name.startswith("time/"))
    assert stages == pytest.approx(metrics["step_s"])
    assert metrics["resident_bytes"] > 10e6


def count_dead_centres() -> list[float | None]:
    seen = SeenClasses(6, epoch=0.5, device=torch.device("cpu"))
    other = dist.rank()
    found = []
    for epoch, labels, valid in [
        (1.2, [0, 1], [True, True]),  # the rest of an epoch says nothing
        (1.6, [2 + other, 5], [True, False]),
        (2.1, [4, -1], [True, False]),  # across the border
        (2.9, [other, 2], [True, True]),
        (3.0, [3, 5], [True, True]),
    ]:
        seen.add(step(labels, valid), epoch)
        found.append(seen.metrics.get("dead_centres"))
    return found


@pytest.mark.parametrize(("ranks", "expected"), [(1, [None, None, 2.0, 2.0, 1.0]), (2, [None, None, 1.0, 1.0, 0.0])])
def test_classes_without_a_valid_photo_in_a_whole_epoch(ranks: int, expected: list[float | None]) -> None:
    # classes 0 and 1 were shown by the step across the first border, 4 by the one across the second
    assert run_ranks(count_dead_centres, ranks) == [expected] * ranks
