"""Optimizers, learning-rate schedules and gradient norms, each a function of samples consumed or of plain tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pipeline import dist
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
    ScheduleConfig,
    SGDConfig,
    StepSchedule,
)
from pipeline.engine.layerwise import LAMB, LARS


def build_optimizer(config: OptimizerConfig, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
    """Build an optimizer over named parameters; vectors (norms, biases, PReLU slopes) get no weight decay.

    Fused: one pass over parameter, gradient and state instead of one an operation, without a temporary copy of each.
    """
    trained = {name: p for name, p in parameters.items() if p.requires_grad}
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained.values() if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained.values() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    is_layerwise = isinstance(config, LARSConfig | LAMBConfig)
    groups = [
        group | ({"is_adapted": is_adapted} if is_layerwise else {})
        for group, is_adapted in zip(groups, (True, False), strict=True)
        if group["params"]
    ]
    match config:
        case AdamConfig():
            return torch.optim.Adam(groups, lr=config.lr, betas=config.betas, fused=True)
        case AdamWConfig():
            return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)
        case LARSConfig():
            return LARS(groups, lr=config.lr, momentum=config.momentum, trust=config.trust)
        case LAMBConfig():
            return LAMB(groups, lr=config.lr, betas=config.betas)
        case SGDConfig():
            return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=True)


def schedule_factor(schedule: ScheduleConfig, epoch: float, total_epochs: float, epoch_samples: int) -> float:
    """Factor on the peak learning rate for the step that begins after `epoch` epochs: a pure function of the position.

    The warm-up rises linearly, from the share that one sample has in it: at the very first step it is not quite zero.

    Args:
        schedule: see there.
        epoch: passes over the data done so far, as `RunPlan.epoch` counts them.
        total_epochs: the whole run's.
        epoch_samples: samples of an epoch.
    """
    warmup = schedule.warmup_epochs
    if epoch < warmup:
        sample = 1 / epoch_samples
        return (epoch + sample) / (warmup + sample)
    done = min(1.0, (epoch - warmup) / (total_epochs - warmup)) if total_epochs > warmup else 1.0
    match schedule:
        case PolynomialSchedule():
            return (1 - done) ** schedule.power
        case CosineSchedule():
            return _half_cosine(done, schedule.floor)
        case CosineRestartsSchedule():
            return _half_cosine(_cycle_share(epoch - warmup, schedule), schedule.floor)
        case StepSchedule():
            return schedule.gamma ** sum(milestone <= epoch for milestone in schedule.milestones)
        case ConstantSchedule():
            return 1.0


def _half_cosine(done: float, floor: float) -> float:
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))


def _cycle_share(epoch: float, schedule: CosineRestartsSchedule) -> float:
    """How much of its cycle is over after `epoch` epochs of cycles: in [0, 1)."""
    first, factor = schedule.cycle_epochs, schedule.cycle_factor
    if factor == 1:
        return epoch / first % 1.0
    # n cycles last first · (factor^n − 1) / (factor − 1); rounding may name the cycle's neighbour at a border
    number = math.floor(math.log1p(epoch / first * (factor - 1)) / math.log(factor))
    start = first * (factor**number - 1) / (factor - 1)
    return min(max((epoch - start) / (first * factor**number), 0.0), 1.0)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of all groups."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def gradient_norm(parameters: Iterable[nn.Parameter], sharded: bool) -> Tensor:
    """L2 norm of the parameters' gradients, see `norm_of`."""
    return norm_of([p.grad for p in parameters if p.grad is not None], sharded)


def norm_of(gradients: list[Tensor], sharded: bool) -> Tensor:
    """Joint L2 norm, a scalar float32; `sharded`: over all ranks' partitions, collective on all ranks."""
    norms = torch._foreach_norm(gradients) if gradients else []
    squared = torch.stack([n.float() for n in norms]).square().sum() if norms else torch.zeros(())
    if sharded:
        squared = dist.all_reduce_sum(squared)
    return squared.sqrt()


def scale_gradients(parameters: Iterable[nn.Parameter], norm: Tensor, max_norm: float | None) -> None:
    """Scale the gradients in place so that their joint norm is at most `max_norm`."""
    clip_to_norm([p.grad for p in parameters if p.grad is not None], norm, max_norm)


def clip_to_norm(gradients: list[Tensor], norm: Tensor, max_norm: float | None) -> None:
    """Scale tensors in place so that their joint norm, which is `norm`, is at most `max_norm`; None for no limit."""
    if max_norm is not None and gradients:
        torch._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).clamp(max=1.0))


def prime_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Make the optimizer lay out its state, as it is before a first step, without moving a parameter.

    A checkpoint can then be read into it, or steps be done as if it had not been called.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
        group["lr"] = 0.0
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, Tensor):
                value.zero_()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The optimizer's state as live tensors under `parameter-name/slot`."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        for slot, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{name}/{slot}"] = value
    return tensors
