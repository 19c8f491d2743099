"""The moving average of weights against a loop, and which weights a checkpoint gives."""

from __future__ import annotations

import pytest
import torch

from pipeline.config.optim import EmaConfig
from pipeline.engine.ema import Ema


@pytest.mark.parametrize(("every_steps", "warmup"), [(1, True), (3, True), (1, False), (2, False)])
def test_it_is_the_average_that_a_loop_makes(every_steps: int, warmup: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(14, 5, generator=generator)
    ema = Ema(EmaConfig(decay=0.6, every_steps=every_steps, warmup=warmup), {"w": weights[0]})
    expected, num_updates = weights[0].double(), 0
    for step in range(1, len(weights)):
        ema.update({"w": weights[step]}, step)
        if step % every_steps == 0:
            num_updates += 1
            decay = min(0.6, (1 + num_updates) / (10 + num_updates)) if warmup else 0.6
            expected = decay * expected + (1 - decay) * weights[step].double()
        torch.testing.assert_close(ema.tensors()["ema/w"].double(), expected, rtol=1e-6, atol=1e-7)


def test_averages_are_float32_and_counters_are_copied() -> None:
    ema = Ema(EmaConfig(), {"w": torch.ones(2, dtype=torch.bfloat16), "n": torch.tensor(1)})
    ema.update({"w": torch.zeros(2, dtype=torch.bfloat16), "n": torch.tensor(7)}, 1)
    found = ema.tensors()
    assert found["ema/w"].dtype == torch.float32
    assert found["ema/n"] == 7
    assert found["ema/n"].dtype == torch.int64
    assert found["ema/w"].tolist() == pytest.approx([2 / 11] * 2)


def test_it_shares_no_memory_with_the_weights() -> None:
    weights = torch.ones(2)
    ema = Ema(EmaConfig(), {"w": weights})
    weights.zero_()
    assert ema.tensors()["ema/w"].tolist() == [1, 1]
    ema.restart({"w": weights})
    assert ema.tensors()["ema/w"].tolist() == [0, 0]
