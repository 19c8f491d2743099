"""Schedules, decay groups, gradient norms, and batch norm's running statistics."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pipeline.config.schema import AdamWConfig, CosineSchedule, PolynomialSchedule, SGDConfig
from pipeline.engine import optim
from pipeline.engine.batch_norm import RunningStatistics


def test_polynomial_schedule_at_hand_computed_points() -> None:
    schedule = PolynomialSchedule(power=2, warmup_epochs=1)
    factors = [optim.schedule_factor(schedule, samples, 300, 100) for samples in (0, 50, 100, 200, 300)]
    assert factors == pytest.approx([1 / 101, 51 / 101, 1.0, 0.25, 0.0])


def test_cosine_schedule_at_hand_computed_points() -> None:
    schedule = CosineSchedule(floor=0.1)
    factors = [optim.schedule_factor(schedule, samples, 200, 100) for samples in (0, 100, 200, 500)]
    assert factors == pytest.approx([1.0, 0.55, 0.1, 0.1])


@pytest.mark.parametrize("config", [SGDConfig(lr=0.1, weight_decay=0.5), AdamWConfig(lr=0.1, weight_decay=0.5)])
def test_norms_and_biases_do_not_decay(config: SGDConfig | AdamWConfig) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    optimizer = optim.build_optimizer(config, dict(model.named_parameters()))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"0.weight"}


@pytest.mark.parametrize("config", [SGDConfig(), AdamWConfig()])
def test_priming_moves_nothing_and_lays_out_all_state(config: SGDConfig | AdamWConfig) -> None:
    parameters = {"w": nn.Parameter(torch.randn(3, 2)), "empty": nn.Parameter(torch.zeros(0, 2))}
    before = parameters["w"].detach().clone()
    optimizer = optim.build_optimizer(config, parameters)
    optim.prime_optimizer(optimizer)
    assert torch.equal(parameters["w"], before)
    slots = {name.partition("/")[0] for name in optim.optimizer_tensors(optimizer, parameters)}
    assert slots == {"w", "empty"}
    assert optimizer.param_groups[0]["lr"] == config.lr


@pytest.mark.parametrize("config", [SGDConfig(lr=0.1), AdamWConfig(lr=0.1)])
def test_a_primed_optimizer_steps_like_a_new_one(config: SGDConfig | AdamWConfig) -> None:
    gradients = torch.randn(3, 4, 2)
    results = []
    for is_primed in (True, False):
        parameter = nn.Parameter(torch.ones(4, 2))
        optimizer = optim.build_optimizer(config, {"w": parameter})
        if is_primed:
            optim.prime_optimizer(optimizer)
        for gradient in gradients:
            parameter.grad = gradient.clone()
            optimizer.step()
        results.append(parameter.detach())
    assert torch.equal(*results)


def test_gradient_norm_and_clipping() -> None:
    a, b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    a.grad, b.grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    norm = optim.gradient_norm([a, b], sharded=False)
    assert norm.item() == pytest.approx(5.0)
    optim.scale_gradients([a, b], norm, 10.0)
    assert a.grad.tolist() == pytest.approx([3.0, 0.0])
    optim.scale_gradients([a, b], norm, 1.0)
    assert math.hypot(a.grad[0].item(), b.grad[0].item()) == pytest.approx(1.0, rel=1e-5)


def test_running_statistics_move_once_by_the_mean_of_the_groups() -> None:
    norm = nn.BatchNorm1d(3)
    statistics = RunningStatistics(norm)
    groups = [torch.randn(5, 3) for _ in range(3)]
    for number, group in enumerate([*groups, groups[0]]):
        with statistics.micro_batch(is_filler=number == 3):
            norm(group)
    statistics.finish_step(3)
    means = torch.stack([g.mean(0) for g in groups]).mean(0)
    variances = torch.stack([g.var(0) for g in groups]).mean(0)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    torch.testing.assert_close(norm.running_mean, 0.1 * means)
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * variances)
    assert norm.num_batches_tracked == 1
