"""Schedules, decay groups, gradient norms, and batch norm's running statistics."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pipeline.config.errors import UserError
from pipeline.config.load import validate_config
from pipeline.config.optim import (
    AdamConfig,
    AdamWConfig,
    ConstantSchedule,
    CosineRestartsSchedule,
    CosineSchedule,
    LAMBConfig,
    LARSConfig,
    OptimizerConfig,
    PolynomialSchedule,
    SGDConfig,
    StepSchedule,
)
from pipeline.engine import optim
from pipeline.engine.batch_norm import RunningStatistics

OPTIMIZERS: list[OptimizerConfig] = [
    SGDConfig(lr=0.1, weight_decay=0.5),
    AdamConfig(lr=0.1, weight_decay=0.5),
    AdamWConfig(lr=0.1, weight_decay=0.5),
    LARSConfig(lr=0.1, weight_decay=0.5, trust=0.02),
    LAMBConfig(lr=0.1, weight_decay=0.5),
]
each_optimizer = pytest.mark.parametrize("config", OPTIMIZERS, ids=[config.kind for config in OPTIMIZERS])


def test_polynomial_schedule_at_hand_computed_points() -> None:
    schedule = PolynomialSchedule(power=2, warmup_epochs=1)
    factors = [optim.schedule_factor(schedule, epoch, 3, 100) for epoch in (0, 0.5, 1, 2, 3)]
    assert factors == pytest.approx([1 / 101, 51 / 101, 1.0, 0.25, 0.0])


def test_cosine_schedule_at_hand_computed_points() -> None:
    schedule = CosineSchedule(floor=0.1)
    factors = [optim.schedule_factor(schedule, epoch, 2, 100) for epoch in (0, 1, 2, 5)]
    assert factors == pytest.approx([1.0, 0.55, 0.1, 0.1])


def test_cosine_restarts_after_the_warm_up_in_longer_and_longer_cycles() -> None:
    schedule = CosineRestartsSchedule(cycle_epochs=1, cycle_factor=2, floor=0.1, warmup_epochs=1)
    epochs = (1, 1.5, 2, 3, 4, 6, 8)  # cycles begin at 1, 2, 4 and 8
    factors = [optim.schedule_factor(schedule, epoch, 20, 100) for epoch in epochs]
    assert factors == pytest.approx([1.0, 0.55, 1.0, 0.55, 1.0, 0.55, 1.0])
    assert optim.schedule_factor(schedule, 1.999999, 20, 100) == pytest.approx(0.1)
    even = CosineRestartsSchedule(cycle_epochs=1.5)
    assert [optim.schedule_factor(even, epoch, 9, 100) for epoch in (0, 0.75, 1.5, 3.75)] == pytest.approx(
        [1.0, 0.5, 1.0, 0.5]
    )


def test_step_schedule_falls_at_its_milestones() -> None:
    schedule = StepSchedule(milestones=(2, 3.5), gamma=0.1, warmup_epochs=1)
    factors = [optim.schedule_factor(schedule, epoch, 5, 100) for epoch in (0.5, 1, 1.99, 2, 3.49, 3.5, 5)]
    assert factors == pytest.approx([51 / 101, 1, 1, 0.1, 0.1, 0.01, 0.01])


def test_constant_schedule_stays() -> None:
    schedule = ConstantSchedule(warmup_epochs=1)
    assert [optim.schedule_factor(schedule, epoch, 2, 100) for epoch in (0, 1, 2)] == pytest.approx([1 / 101, 1, 1])


def test_a_warm_up_as_long_as_the_run_ends_it() -> None:
    schedule = PolynomialSchedule(warmup_epochs=3)
    assert optim.schedule_factor(schedule, 1.5, 2, 100) == pytest.approx(151 / 301)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"schedule": {"kind": "step", "milestones": [3, 3]}}, "must ascend"),
        ({"optim": {"head": {"kind": "lars"}}}, "optim.head.kind: 'lars'; expected one of sgd, adam, adamw"),
        ({"optim": {"head": {"kind": "lamb"}}}, "optim.head.kind: 'lamb'; expected one of sgd, adam, adamw"),
    ],
)
def test_mistakes_are_named(section: dict[str, object], message: str) -> None:
    tree = {"output": "run", "data": {"path": "d"}, "training": {"epochs": 1, "global_batch": 2, "local_batch": 2}}
    with pytest.raises(UserError, match=message):
        validate_config(tree | section)


@each_optimizer
def test_norms_and_biases_do_not_decay(config: OptimizerConfig) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    optimizer = optim.build_optimizer(config, dict(model.named_parameters()))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"0.weight"}


@each_optimizer
def test_priming_moves_nothing_and_lays_out_all_state(config: OptimizerConfig) -> None:
    parameters = {"w": nn.Parameter(torch.randn(3, 2)), "empty": nn.Parameter(torch.zeros(0, 2))}
    before = parameters["w"].detach().clone()
    optimizer = optim.build_optimizer(config, parameters)
    optim.prime_optimizer(optimizer)
    assert torch.equal(parameters["w"], before)
    slots = {name.partition("/")[0] for name in optim.optimizer_tensors(optimizer, parameters)}
    assert slots == {"w", "empty"}
    assert optimizer.param_groups[0]["lr"] == config.lr


@each_optimizer
def test_a_primed_optimizer_steps_like_a_new_one(config: OptimizerConfig) -> None:
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


@each_optimizer
def test_a_parameter_without_a_gradient_keeps_its_value_and_its_state(config: OptimizerConfig) -> None:
    parameters = {name: nn.Parameter(torch.randn(3, 2)) for name in ("rests", "moves")}
    optimizer = optim.build_optimizer(config, parameters)
    for step in range(3):
        parameters["moves"].grad = torch.randn(3, 2)
        parameters["rests"].grad = torch.randn(3, 2) if step == 0 else None
        optimizer.step()
        if step == 0:
            value = parameters["rests"].detach().clone()
            state = {k: v.clone() for k, v in optim.optimizer_tensors(optimizer, parameters).items()}
    assert torch.equal(parameters["rests"], value)
    now = optim.optimizer_tensors(optimizer, parameters)
    changed = {name.partition("/")[0] for name in state if not torch.equal(now[name], state[name])}
    assert changed == {"moves"}


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
