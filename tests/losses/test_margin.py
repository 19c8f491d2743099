"""Margins: values, gradients and corners of each transform of the target's logit."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from pipeline.config.margins import ArcFaceMargin, CosFaceMargin, MarginConfig, NormFaceMargin, SoftmaxMargin
from pipeline.model.margins.base import Margin, build_margin, register_margin, sine
from pipeline.model.margins.cosine import ArcFace

ARCFACE = ArcFaceMargin(scale=64, margin=0.5)
CONFIGS: list[MarginConfig] = [
    SoftmaxMargin(),
    NormFaceMargin(scale=30),
    CosFaceMargin(scale=64, margin=0.4),
    ARCFACE,
    ArcFaceMargin(scale=64, margin=0.5, easy_margin=True),
    ArcFaceMargin(scale=64, margin=0.5, detach_margin_gradient=True),
    ArcFaceMargin(scale=64, margin=0.0),
    ArcFaceMargin(scale=64, margin=1.2),
]


def target_logit(margin: Margin, cosine: Tensor) -> Tensor:
    return margin.target_logit(cosine, torch.ones_like(cosine), torch.arange(len(cosine)), step=0)


def derivative(config: MarginConfig, cosine: float) -> float:
    leaf = torch.tensor([cosine], dtype=torch.float64, requires_grad=True)
    target_logit(build_margin(config), leaf).sum().backward()
    assert leaf.grad is not None
    return leaf.grad.item()


def test_every_margin_of_the_configuration_builds() -> None:
    for section in get_args(get_args(MarginConfig)[0]):
        assert isinstance(build_margin(section()), Margin)


def test_names_are_not_overwritten() -> None:
    with pytest.raises(ValueError, match="'arcface' is registered already"):
        register_margin("arcface")(ArcFace)


@pytest.mark.parametrize("config", [c for c in CONFIGS if not getattr(c, "detach_margin_gradient", False)], ids=str)
def test_gradient_is_the_derivative_of_the_value(config: MarginConfig) -> None:
    margin = build_margin(config)
    # away from the kinks at cos(π − m) and, for the easy margin, at 0
    cosine = torch.tensor([-0.99, -0.9, -0.7, -0.5, -0.2, 0.01, 0.3, 0.6, 0.9, 0.99], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda c: target_logit(margin, c), cosine.requires_grad_(), eps=1e-7)


def test_arcface_is_the_cosine_of_the_angle_plus_margin() -> None:
    cosine = torch.linspace(-1, 1, 2001, dtype=torch.float64)
    phi = target_logit(build_margin(ARCFACE), cosine) / 64
    angle = cosine.acos() + 0.5
    within = angle < math.pi
    assert torch.allclose(phi[within], torch.cos(angle[within]), rtol=0, atol=1e-14)
    assert torch.allclose(phi[~within], cosine[~within] - 0.5 * math.sin(0.5), rtol=0, atol=1e-14)
    assert (phi.diff() > 0).all(), "φ must rise with the cosine everywhere, past θ + m = π too"
    assert (phi < cosine).all()


def test_arcface_with_easy_margin_leaves_obtuse_angles_alone() -> None:
    cosine = torch.linspace(-1, 1, 2001, dtype=torch.float64)
    phi = target_logit(build_margin(ArcFaceMargin(scale=1, margin=0.5, easy_margin=True)), cosine)
    acute = cosine > 0
    assert torch.equal(phi[~acute], cosine[~acute])
    assert torch.allclose(phi[acute], torch.cos(cosine[acute].acos() + 0.5), rtol=0, atol=1e-14)


def test_arcface_gradient_is_exact_unless_asked_otherwise() -> None:
    assert derivative(ARCFACE, 0.9) == pytest.approx(119.5, abs=0.05)
    assert derivative(ArcFaceMargin(scale=64, margin=0.5, detach_margin_gradient=True), 0.9) == 64


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients_are_finite_at_and_just_past_the_ends(config: MarginConfig, dtype: torch.dtype) -> None:
    beyond = 1 + 4 * torch.finfo(dtype).eps
    cosine = torch.tensor([-beyond, -1, -1 / beyond, 1 / beyond, 1, beyond], dtype=dtype, requires_grad=True)
    values = target_logit(build_margin(config), cosine)
    values.sum().backward()
    assert cosine.grad is not None
    assert values.isfinite().all()
    assert cosine.grad.isfinite().all()
    assert cosine.grad.abs().max() <= 64 * (1 + 1e3)


def test_sine_keeps_its_digits_near_one() -> None:
    cosine = torch.tensor([1 - 2.0**-24], dtype=torch.float32)
    exact = cosine.double().acos().sin().item()
    assert sine(cosine).item() == pytest.approx(exact, rel=1e-6)


def test_metric_counts_angles_past_pi() -> None:
    cosine = torch.tensor([-1.0, math.cos(math.pi - 0.49), math.cos(math.pi - 0.51), 1.0])
    assert build_margin(ARCFACE).metrics(cosine)["past_pi_share"].tolist() == [1, 1, 0, 0]


def test_loss_neither_saturates_nor_loses_easy_samples() -> None:
    margin = build_margin(ARCFACE)
    # hopeless, even, easy, and without any other class; 69.0776 is where a floor of 1e-30 would stop the first
    target = torch.tensor([-64.0, 10.0, 64.0, 3.0], requires_grad=True)
    negative_lse = torch.tensor([64.0, 10.0, 20.0, -torch.inf])
    losses = margin.sample_loss(target, negative_lse, torch.ones(4))
    assert losses.tolist() == pytest.approx([128.0, math.log(2), math.exp(-44), 0.0], rel=1e-6)
    losses.sum().backward()
    assert target.grad is not None
    assert target.grad.tolist() == pytest.approx([-1.0, -0.5, -math.exp(-44), 0.0], rel=1e-6)
