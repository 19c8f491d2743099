"""LARS and LAMB against their papers' formulas, written as loops over plain numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pipeline.config.optim import LAMBConfig, LARSConfig
from pipeline.engine.optim import build_optimizer, set_lr

RATES = [0.3, 0.2, 0.1, 0.05]
SHAPES = {"matrix": (4, 3), "filters": (2, 3, 3, 3), "bias": (5,), "zero": (2, 2)}


def initial_values() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    values = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in SHAPES.items()}
    values["zero"].zero_()
    return values


def gradients_at(step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in SHAPES.items()}


def trained(config: LARSConfig | LAMBConfig) -> dict[str, Tensor]:
    parameters = {name: nn.Parameter(value) for name, value in initial_values().items()}
    optimizer = build_optimizer(config, parameters)
    for step, rate in enumerate(RATES):
        for name, gradient in gradients_at(step).items():
            parameters[name].grad = gradient
        set_lr(optimizer, rate)
        optimizer.step()
    return {name: p.detach() for name, p in parameters.items()}


def length(values: list[float]) -> float:
    return sum(value * value for value in values) ** 0.5


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_lars_is_algorithm_1(momentum: float) -> None:
    config = LARSConfig(momentum=momentum, weight_decay=0.1, trust=0.02)
    found = trained(config)
    for name, start in initial_values().items():
        weights = start.flatten().tolist()
        velocity = [0.0] * len(weights)
        is_vector = start.ndim == 1
        decay = 0.0 if is_vector else config.weight_decay
        for step, rate in enumerate(RATES):
            gradient = gradients_at(step)[name].flatten().tolist()
            weight_length, gradient_length = length(weights), length(gradient)
            local = 1.0
            if not is_vector and weight_length > 0:
                local = config.trust * weight_length / (gradient_length + decay * weight_length)
            for i in range(len(weights)):
                velocity[i] = momentum * velocity[i] + rate * local * (gradient[i] + decay * weights[i])
            weights = [w - v for w, v in zip(weights, velocity, strict=True)]
        assert found[name].flatten().tolist() == pytest.approx(weights, rel=1e-12), name


def test_lamb_is_algorithm_2() -> None:
    config = LAMBConfig(betas=(0.8, 0.95), weight_decay=0.1)
    found = trained(config)
    first, second = config.betas
    for name, start in initial_values().items():
        weights = start.flatten().tolist()
        mean, square = [0.0] * len(weights), [0.0] * len(weights)
        is_vector = start.ndim == 1
        decay = 0.0 if is_vector else config.weight_decay
        for step, rate in enumerate(RATES):
            gradient = gradients_at(step)[name].flatten().tolist()
            update = []
            for i, g in enumerate(gradient):
                mean[i] = first * mean[i] + (1 - first) * g
                square[i] = second * square[i] + (1 - second) * g * g
                corrected_mean = mean[i] / (1 - first ** (step + 1))
                corrected_square = square[i] / (1 - second ** (step + 1))
                update.append(corrected_mean / (corrected_square**0.5 + 1e-6) + decay * weights[i])
            ratio = 1.0
            if not is_vector and length(weights) > 0:
                ratio = length(weights) / length(update)
            weights = [w - rate * ratio * u for w, u in zip(weights, update, strict=True)]
        assert found[name].flatten().tolist() == pytest.approx(weights, rel=1e-12), name


@pytest.mark.parametrize("config", [LARSConfig(weight_decay=0.1), LAMBConfig(weight_decay=0.0)])
def test_a_gradient_of_zero_gives_finite_weights(config: LARSConfig | LAMBConfig) -> None:
    parameters = {"w": nn.Parameter(torch.ones(3, 2)), "zero": nn.Parameter(torch.zeros(3, 2))}
    optimizer = build_optimizer(config, parameters)
    for p in parameters.values():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert all(bool(p.isfinite().all()) for p in parameters.values())
