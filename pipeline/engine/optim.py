"""Optimizers, learning-rate schedules and gradient norms, each a function of samples consumed or of plain tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from pipeline import dist
from pipeline.config.schema import AdamWConfig, CosineSchedule, OptimizerConfig, PolynomialSchedule


def build_optimizer(config: OptimizerConfig, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
    """Build an optimizer over named parameters; vectors (norms, biases, PReLU slopes) get no weight decay.

    Fused: one pass over parameter, gradient and state instead of one an operation, without a temporary copy of each.
    """
    trained = {name: p for name, p in parameters.items() if p.requires_grad}
    groups = [
        {"params": [p for p in trained.values() if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained.values() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if isinstance(config, AdamWConfig):
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=True)


def schedule_factor(
    schedule: PolynomialSchedule | CosineSchedule, samples: int, total_samples: int, epoch_samples: int
) -> float:
    """Factor on the peak learning rate for the step that begins after `samples` were consumed.

    The warm-up rises linearly from (nearly) zero.
    """
    warmup = round(schedule.warmup_epochs * epoch_samples)
    if samples < warmup:
        return (samples + 1) / (warmup + 1)
    done = min(1.0, (samples - warmup) / max(1, total_samples - warmup))
    if isinstance(schedule, CosineSchedule):
        return schedule.floor + (1 - schedule.floor) * 0.5 * (1 + math.cos(math.pi * done))
    return (1 - done) ** schedule.power


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
    if max_norm is None:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    if gradients:
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
