"""The fp16 loss scale: when it moves, and when a step counts."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.engine import loss_scale
from pipeline.engine.loss_scale import INITIAL_SCALE, LossScale


def test_an_overflow_halves_the_scale_and_leaves_the_step_out() -> None:
    scale = LossScale()
    for number, norm in enumerate([math.inf, math.nan, math.inf], 1):
        assert scale.leaves_out(torch.tensor(norm))
        assert scale.value == INITIAL_SCALE / 2**number
    assert not scale.leaves_out(torch.tensor(3.0))
    assert scale.value == INITIAL_SCALE / 8


def test_a_while_without_overflow_doubles_the_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_scale, "GROWTH_INTERVAL", 3)
    scale = LossScale()
    norms = [1.0, 1.0, math.inf, 1.0, 1.0, 1.0, 1.0]  # an overflow begins the count anew
    values = [scale.value for norm in norms if scale.leaves_out(torch.tensor(norm)) is not None]
    assert [value / INITIAL_SCALE for value in values] == [1, 1, 0.5, 0.5, 0.5, 1, 1]


def test_at_the_least_scale_an_overflow_is_none_of_its_business() -> None:
    scale = LossScale()
    verdicts = [scale.leaves_out(torch.tensor(math.inf)) for _ in range(20)]
    assert verdicts == [True] * 16 + [False] * 4
    assert scale.value == 1.0


def test_its_tensors_are_all_of_its_state() -> None:
    one, other = LossScale(), LossScale()
    for norm in (math.inf, 1.0, 1.0):
        one.leaves_out(torch.tensor(norm))
    for name, tensor in other.tensors().items():
        tensor.copy_(one.tensors()[name])
    assert other.value == one.value == INITIAL_SCALE / 2
    assert other.tensors() == one.tensors() == {"scale": torch.tensor(2.0**15), "clean_steps": torch.tensor(2)}
