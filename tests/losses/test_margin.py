"""Margins: values, gradients and corners of each transform of the target's logit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import get_args

import pytest
import torch
from torch import Tensor

from pipeline.config.margins import (
    AdaCosMargin,
    AdaFaceMargin,
    ArcFaceMargin,
    CombinedMargin,
    CosFaceMargin,
    CurricularFaceMargin,
    ElasticFaceMargin,
    LSoftmaxMargin,
    MagFaceMargin,
    MarginConfig,
    SphereFaceMargin,
    UnifiedMargin,
)
from pipeline.model.margins.base import GlobalBatch, Margin, angle, build_margin, register_margin, sine
from pipeline.model.margins.cosine import ArcFace
from pipeline.model.margins.multiplied_angle import multiplied_angle
from tests.losses.head_cases import MARGINS

NUM_CLASSES = 1000
ARCFACE = ArcFaceMargin(scale=64, margin=0.5)
CONFIGS: list[MarginConfig] = [
    *(config for _, config in MARGINS),
    ArcFaceMargin(scale=64, margin=0.0),
    ArcFaceMargin(scale=64, margin=1.2),
]


def build(config: MarginConfig) -> Margin:
    return build_margin(config, NUM_CLASSES)


def batch_of(norm: Tensor, step: int = 0) -> GlobalBatch:
    ids = torch.arange(len(norm))
    return GlobalBatch(norm, ids, torch.ones(len(norm), dtype=torch.bool), step, 0, torch.ones_like(norm))


def target_logit(margin: Margin, cosine: Tensor, norm: float = 1.0) -> Tensor:
    return margin.target_logit(cosine, batch_of(torch.full_like(cosine, norm)))


def derivative(config: MarginConfig, cosine: float) -> float:
    leaf = torch.tensor([cosine], dtype=torch.float64, requires_grad=True)
    target_logit(build(config), leaf).sum().backward()
    assert leaf.grad is not None
    return leaf.grad.item()


def test_every_margin_of_the_configuration_builds() -> None:
    for section in get_args(get_args(MarginConfig)[0]):
        assert isinstance(build(section()), Margin)


def test_names_are_not_overwritten() -> None:
    with pytest.raises(ValueError, match="'arcface' is registered already"):
        register_margin("arcface")(ArcFace)


def is_detached(config: MarginConfig) -> bool:
    return bool(getattr(config, "detach_margin_gradient", False))


@pytest.mark.parametrize("config", [c for c in CONFIGS if not is_detached(c)], ids=str)
def test_gradient_is_the_derivative_of_the_value(config: MarginConfig) -> None:
    margin = build(config).double()
    # away from the kinks: where π is passed, where the easy margin begins, where lengths are clipped
    cosine = torch.tensor([-0.99, -0.9, -0.7, -0.52, -0.2, 0.01, 0.3, 0.6, 0.9, 0.99], dtype=torch.float64)
    norm = torch.linspace(3.1, 17.3, 10, dtype=torch.float64)
    centre_norm = torch.linspace(0.5, 2, 10, dtype=torch.float64)

    def logit(cosine: Tensor, norm: Tensor, centre_norm: Tensor) -> Tensor:
        batch = GlobalBatch(norm, torch.arange(10), torch.ones(10, dtype=torch.bool), 3, 0, centre_norm)
        similarity = cosine if margin.is_cosine else cosine * norm * centre_norm
        return margin.target_logit(similarity, batch)

    if isinstance(config, AdaFaceMargin):
        # the length's part has no gradient, by definition
        assert torch.autograd.gradcheck(lambda c: logit(c, norm, centre_norm), cosine.requires_grad_(), eps=1e-7)
        return
    leaves = [leaf.requires_grad_() for leaf in (cosine, norm, centre_norm)]
    assert torch.autograd.gradcheck(logit, leaves, eps=1e-7, atol=1e-4)


# the easy margin jumps at 90°, as published
@pytest.mark.parametrize("config", [c for c in CONFIGS if not getattr(c, "easy_margin", False)], ids=str)
@pytest.mark.parametrize("norm", [0.5, 30.0])
def test_the_logit_falls_with_the_angle_everywhere(config: MarginConfig, norm: float) -> None:
    """A margin that turns upwards somewhere pulls the hardest samples the wrong way."""
    if isinstance(config, ElasticFaceMargin):
        config = config.model_copy(update={"deviation": 0.0})  # else each sample has a margin of its own
    theta = torch.linspace(0.002, math.pi - 0.002, 3001, dtype=torch.float64)
    logits = target_logit(build(config).double(), theta.cos(), norm)
    assert (logits.diff() <= 1e-9).all()
    assert logits[0] > logits[-1]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients_are_finite_at_and_just_past_the_ends(config: MarginConfig, dtype: torch.dtype) -> None:
    beyond = 1 + 4 * torch.finfo(dtype).eps
    cosine = torch.tensor([-beyond, -1, -1 / beyond, 1 / beyond, 1, beyond], dtype=dtype, requires_grad=True)
    values = target_logit(build(config).to(dtype), cosine)
    values.sum().backward()
    assert cosine.grad is not None
    assert values.isfinite().all()
    assert cosine.grad.isfinite().all()
    assert cosine.grad.abs().max() <= 64 * (1 + 1e3)


@pytest.mark.parametrize("config", [c for c in CONFIGS if not build(c).is_cosine or c.kind == "sphereface"], ids=str)
def test_an_embedding_of_length_zero_has_finite_gradients(config: MarginConfig) -> None:
    norm = torch.zeros(2, requires_grad=True)
    similarity = torch.zeros(2, requires_grad=True)
    margin = build(config)
    logits = margin.target_logit(similarity / margin.logit_scale(norm), batch_of(norm))
    logits.sum().backward()
    for leaf in (norm, similarity):
        assert leaf.grad is None or leaf.grad.isfinite().all()


def test_arcface_is_the_cosine_of_the_angle_plus_margin() -> None:
    cosine = torch.linspace(-1, 1, 2001, dtype=torch.float64)
    phi = target_logit(build(ARCFACE), cosine) / 64
    theta = cosine.acos() + 0.5
    within = theta < math.pi
    assert torch.allclose(phi[within], torch.cos(theta[within]), rtol=0, atol=1e-14)
    assert torch.allclose(phi[~within], cosine[~within] - 0.5 * math.sin(0.5), rtol=0, atol=1e-14)
    assert (phi < cosine).all()


def test_arcface_with_easy_margin_leaves_obtuse_angles_alone() -> None:
    cosine = torch.linspace(-1, 1, 2001, dtype=torch.float64)
    phi = target_logit(build(ArcFaceMargin(scale=1, margin=0.5, easy_margin=True)), cosine)
    acute = cosine > 0
    assert torch.equal(phi[~acute], cosine[~acute])
    assert torch.allclose(phi[acute], torch.cos(cosine[acute].acos() + 0.5), rtol=0, atol=1e-14)


def test_arcface_gradient_is_exact_unless_asked_otherwise() -> None:
    assert derivative(ARCFACE, 0.9) == pytest.approx(119.5, abs=0.05)
    assert derivative(ArcFaceMargin(scale=64, margin=0.5, detach_margin_gradient=True), 0.9) == 64


def test_combined_combines_all_three() -> None:
    """The reference implementation ignores m1 and m2 as soon as m3 is set."""
    cosine = torch.tensor([math.cos(0.4)], dtype=torch.float64)
    values = {
        (m1, m2, m3): target_logit(build(CombinedMargin(scale=1, m1=m1, m2=m2, m3=m3)), cosine).item()
        for m1 in (1.0, 1.5)
        for m2 in (0.0, 0.3)
        for m3 in (0.0, 0.2)
    }
    for (m1, m2, m3), value in values.items():
        assert value == pytest.approx(math.cos(m1 * 0.4 + m2) - m3, abs=1e-12)
    assert len(set(values.values())) == 8


def test_combined_is_arcface_and_cosface_where_they_are_defined() -> None:
    cosine = torch.linspace(-0.85, 1, 500, dtype=torch.float64)
    arcface = target_logit(build(ARCFACE), cosine)
    assert torch.allclose(target_logit(build(CombinedMargin(scale=64, m1=1, m2=0.5, m3=0)), cosine), arcface, atol=1e-9)
    cosface = target_logit(build(CosFaceMargin(scale=64, margin=0.35)), cosine)
    assert torch.allclose(target_logit(build(CombinedMargin(scale=64, m1=1, m2=0, m3=0.35)), cosine), cosface)


@pytest.mark.parametrize("m", [1, 2, 3, 4])
def test_multiplied_angle_at_its_seams_and_between(m: int) -> None:
    theta = torch.linspace(0, math.pi, 4001, dtype=torch.float64)
    k = torch.floor(m * theta / math.pi).clamp(max=m - 1)
    expected = (-1) ** k * torch.cos(m * theta) - 2 * k
    assert torch.allclose(multiplied_angle(theta.cos(), m), expected, atol=1e-12)
    seams = torch.tensor([math.cos(number * math.pi / m) for number in range(m + 1)], dtype=torch.float64)
    assert multiplied_angle(seams, m).tolist() == pytest.approx([1 - 2 * number for number in range(m + 1)])


def test_annealing_falls_to_its_floor() -> None:
    config = SphereFaceMargin()
    margin = build(config)
    cosine, norm = torch.tensor([0.3]), torch.ones(1)
    values = [margin.metrics(cosine, batch_of(norm, step))["annealing"].item() for step in (0, 100, 10_000)]
    assert values == pytest.approx([1000.0, 1000 / 13, 5.0])
    full = build(LSoftmaxMargin(margin=4, annealing_start=0, annealing_floor=0))
    assert target_logit(full, cosine).item() == pytest.approx(multiplied_angle(cosine, 4).item())


def test_magface_margin_runs_from_least_to_greatest_and_has_a_gradient() -> None:
    margin, cosine = build(MagFaceMargin()), torch.tensor([0.5, 0.5, 0.5, 0.5])
    norm = torch.tensor([1.0, 10.0, 60.0, 200.0], requires_grad=True)
    batch = batch_of(norm)
    assert margin.metrics(cosine, batch)["margin"].tolist() == pytest.approx([0.45, 0.45, 0.625, 0.8])
    margin.target_logit(cosine, batch).sum().backward()
    assert norm.grad is not None
    assert norm.grad[[0, 3]].tolist() == [0, 0]
    assert norm.grad[2] < 0, "a longer embedding has a larger margin"
    penalty = margin.sample_loss(torch.zeros(4), torch.full((4,), -torch.inf), batch)
    assert penalty[1].item() == pytest.approx(35 * (1 / 10 + 10 / 110**2))


def test_adaface_gives_good_photos_an_additive_and_poor_ones_an_angular_margin() -> None:
    margin, cosine = build(AdaFaceMargin(scale=1)), torch.tensor([0.5, 0.5, 0.5], dtype=torch.float64)
    norm = torch.tensor([1e-3, 20.0, 1e6], dtype=torch.float64)
    margin.norm_deviation.fill_(1.0)
    found = margin.target_logit(cosine, batch_of(norm))
    theta = math.acos(0.5)
    assert found.tolist() == pytest.approx(
        [math.cos(theta + 0.4), math.cos(theta) - 0.4, math.cos(theta - 0.4) - 0.8], abs=1e-6
    )


def test_adaface_keeps_its_deviation_for_a_single_sample() -> None:
    margin = build(AdaFaceMargin(momentum=0.5))
    margin.observe(torch.zeros(1), batch_of(torch.tensor([60.0])))
    assert margin.norm_deviation.item() == 100
    assert margin.norm_mean.item() == pytest.approx(40)


def test_curricularface_moves_t_by_valid_slots_only() -> None:
    margin = build(CurricularFaceMargin(momentum=0.1))
    valid = torch.tensor([True, False])
    margin.observe(torch.tensor([0.5, 77.0]), GlobalBatch(torch.ones(2), torch.arange(2), valid, 0, 0))
    assert margin.t.item() == pytest.approx(0.05)


def test_adacos_fixed_scale_and_its_limit() -> None:
    assert build(AdaCosMargin(dynamic=False)).logit_scale(torch.ones(1)).item() == pytest.approx(
        math.sqrt(2) * math.log(NUM_CLASSES - 1)
    )
    for num_classes in (1, 2):
        assert build_margin(AdaCosMargin(), num_classes).logit_scale(torch.ones(1)).item() > 0


def test_adacos_corrects_for_sampled_negatives() -> None:
    scales = []
    for rate in (1.0, 0.1):
        margin = build(AdaCosMargin())
        # a tenth of the negatives have a tenth of the sum
        lse = torch.full((4,), math.log(5000 * rate))
        margin.observe_classes(torch.full((4,), 0.8), lse, rate, batch_of(torch.ones(4)))
        scales.append(margin.logit_scale(torch.ones(1)).item())
    assert scales[0] == pytest.approx(scales[1], rel=1e-6)
    assert scales[0] == pytest.approx(math.log(5000) / 0.8, rel=1e-6)


def test_elasticface_draws_belong_to_seed_step_and_sample() -> None:
    margin = build(ElasticFaceMargin())
    assert hasattr(margin, "draw")
    zeros = torch.zeros(20_000)
    base = GlobalBatch(zeros, torch.arange(20_000), zeros == 0, 7, 3)
    draws = margin.draw(zeros, base)
    assert draws.mean().item() == pytest.approx(0.5, abs=2e-3)
    assert draws.std().item() == pytest.approx(0.05, rel=0.03)
    part = GlobalBatch(zeros[:10], torch.arange(500, 510), zeros[:10] == 0, 7, 3)
    assert torch.equal(margin.draw(zeros[:10], part), draws[500:510])
    for step, seed in ((8, 3), (7, 4)):
        other = GlobalBatch(zeros[:10], torch.arange(10), zeros[:10] == 0, step, seed)
        assert not torch.equal(margin.draw(zeros[:10], other), draws[:10])


def test_elasticface_plus_gives_the_farthest_sample_the_greatest_margin() -> None:
    margin = build(ElasticFaceMargin(plus=True))
    assert hasattr(margin, "draw")
    cosine = torch.tensor([0.9, -0.2, 0.4, 0.1])
    valid = torch.tensor([True, True, True, False])
    found = margin.draw(cosine, GlobalBatch(torch.ones(4), torch.arange(4), valid, 0, 0))
    assert found[1] > found[2] > found[0] > 0
    assert found[3] == 0


def test_unified_threshold_starts_at_the_logarithm_of_ten_times_the_classes() -> None:
    margin = build(UnifiedMargin(negative_ratio=0.5))
    bias = margin.negative_bias()
    assert bias is not None
    assert bias.item() == pytest.approx(-math.log(10 * NUM_CLASSES * 0.5))


@pytest.mark.parametrize("function", [sine, angle])
def test_sine_and_angle_keep_their_digits_near_one(function: object) -> None:
    assert callable(function)
    cosine = torch.tensor([1 - 2.0**-24], dtype=torch.float32)
    exact = cosine.double().acos()
    expected = exact.sin() if function is sine else exact
    assert function(cosine).item() == pytest.approx(expected.item(), rel=1e-6)


def test_metric_counts_angles_past_pi() -> None:
    cosine = torch.tensor([-1.0, math.cos(math.pi - 0.49), math.cos(math.pi - 0.51), 1.0])
    metrics = build(ARCFACE).metrics(cosine, batch_of(torch.ones(4)))
    assert metrics["past_pi_share"].tolist() == [1, 1, 0, 0]


def test_loss_neither_saturates_nor_loses_easy_samples() -> None:
    margin = build(ARCFACE)
    # hopeless, even, easy, and without any other class; 69.0776 is where a floor of 1e-30 would stop the first
    target = torch.tensor([-64.0, 10.0, 64.0, 3.0], requires_grad=True)
    negative_lse = torch.tensor([64.0, 10.0, 20.0, -torch.inf])
    losses = margin.sample_loss(target, negative_lse, batch_of(torch.ones(4)))
    assert losses.tolist() == pytest.approx([128.0, math.log(2), math.exp(-44), 0.0], rel=1e-6)
    losses.sum().backward()
    assert target.grad is not None
    assert target.grad.tolist() == pytest.approx([-1.0, -0.5, -math.exp(-44), 0.0], rel=1e-6)


def statistics_of(margin: Margin) -> Iterator[tuple[str, Tensor]]:
    yield from ((name, buffer.clone()) for name, buffer in margin.named_buffers())


@pytest.mark.parametrize("config", [c for c in CONFIGS if list(build(c).buffers())], ids=str)
def test_statistics_are_in_the_checkpoint(config: MarginConfig) -> None:
    assert dict(statistics_of(build(config))).keys() <= build(config).state_dict().keys()
