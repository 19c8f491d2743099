"""Margins on the cosine or its angle that are the same for every sample and step."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pipeline.model.margins.base import GlobalBatch, Margin, NegativeTransform, angle, register_margin, sine


@register_margin("softmax")
class Softmax(Margin):
    """Plain softmax: logits W·x + b."""

    is_cosine = False
    has_bias = True

    def logit_scale(self, norm: Tensor) -> float:
        return 1.0


class ScaledCosine(Margin):
    """Base of margins with logits s·cos θ and a fixed s."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def logit_scale(self, norm: Tensor) -> float:
        return self.scale


@register_margin("normface")
class NormFace(Margin):
    """Normalised softmax without a margin: φ = cos θ (Wang et al. 2017, arXiv:1704.06369, equation 5).

    Args:
        scale: s.
        learns_scale: make s a parameter that starts there, as the paper's section 3.3 does.
    """

    def __init__(self, scale: float, learns_scale: bool) -> None:
        super().__init__()
        self.scale: float | nn.Parameter = nn.Parameter(torch.tensor(scale)) if learns_scale else scale

    def logit_scale(self, norm: Tensor) -> Tensor | float:
        return self.scale

    def metrics(self, similarity: Tensor, batch: GlobalBatch) -> dict[str, Tensor]:
        return {"scale": self.scale.detach()} if isinstance(self.scale, Tensor) else {}


@register_margin("cosface")
class CosFace(ScaledCosine):
    """φ = cos θ − m (Wang et al. 2018, arXiv:1801.09414, equation 4)."""

    def __init__(self, scale: float, margin: float) -> None:
        super().__init__(scale)
        self.margin = margin

    def target_logit(self, similarity: Tensor, batch: GlobalBatch) -> Tensor:
        return self.scale * (similarity - self.margin)


def additive_angle(cosine: Tensor, margin: Tensor | float) -> Tensor:
    """cos(θ + m) where θ + m ≤ π, beyond it cos θ − m·sin m, which keeps falling where cos(θ + m) turns upwards.

    `margin`: radians, a number or of the cosine's shape, then with a gradient of its own.
    """
    m = torch.as_tensor(margin, dtype=cosine.dtype, device=cosine.device)
    phi = cosine * m.cos() - sine(cosine) * m.sin()
    return torch.where(is_past_pi(cosine, m), cosine - m * m.sin(), phi)


def is_past_pi(cosine: Tensor, margin: Tensor | float) -> Tensor:
    """Whether θ + m ≥ π."""
    return cosine <= -torch.as_tensor(margin, dtype=cosine.dtype, device=cosine.device).cos()


@register_margin("arcface")
class ArcFace(ScaledCosine):
    """φ = cos(θ + m) (Deng et al. 2019, arXiv:1801.07698, equation 3); past π see `additive_angle`.

    Args:
        scale: s.
        margin: m, radians.
        easy_margin: a margin only where cos θ > 0, φ = cos θ elsewhere.
        detach_margin_gradient: treat φ − cos θ as a constant, as the reference implementation does. The gradient is
            then s everywhere; at cos θ = 0.9 the true one is 1.87 s for m = 0.5.
    """

    def __init__(self, scale: float, margin: float, easy_margin: bool, detach_margin_gradient: bool) -> None:
        super().__init__(scale)
        self.margin = margin
        self.easy_margin = easy_margin
        self.detach_margin_gradient = detach_margin_gradient

    def target_logit(self, similarity: Tensor, batch: GlobalBatch) -> Tensor:
        if self.easy_margin:
            phi = similarity * math.cos(self.margin) - sine(similarity) * math.sin(self.margin)
            phi = torch.where(similarity > 0, phi, similarity)
        else:
            phi = additive_angle(similarity, self.margin)
        if self.detach_margin_gradient:
            phi = similarity + (phi - similarity).detach()
        return self.scale * phi

    def metrics(self, similarity: Tensor, batch: GlobalBatch) -> dict[str, Tensor]:
        return {"past_pi_share": is_past_pi(similarity, self.margin).to(similarity.dtype)}


@register_margin("combined")
class Combined(ScaledCosine):
    """φ = cos(m1·θ + m2) − m3 (Deng et al. 2019, arXiv:1801.07698, equation 4).

    Where m1·θ + m2 passes a multiple of π the cosine would turn upwards; there it goes on as `falling_cosine`, without
    a jump. With m1 = 1 and m3 = 0 that differs from `ArcFace`'s published way of going on, past π only.
    """

    def __init__(self, scale: float, m1: float, m2: float, m3: float) -> None:
        super().__init__(scale)
        self.m1, self.m2, self.m3 = m1, m2, m3

    def target_logit(self, similarity: Tensor, batch: GlobalBatch) -> Tensor:
        return self.scale * (falling_cosine(self.m1 * angle(similarity) + self.m2) - self.m3)


def falling_cosine(theta: Tensor) -> Tensor:
    """(−1)^k cos θ − 2k with k = ⌊θ/π⌋: the cosine on [0, π], and falling on beyond it without a jump."""
    k = torch.floor(theta.detach() / math.pi).clamp(min=0)
    return (1 - 2 * (k % 2)) * theta.cos() - 2 * k


@register_margin("airface")
class AirFace(ScaledCosine):
    """Logits linear in the angle: s(π − 2(θ + m))/π for the target, m = 0 for the others (Li et al. 2019,
    arXiv:1907.12256, equation 6)."""

    def __init__(self, scale: float, margin: float) -> None:
        super().__init__(scale)
        self.margin = margin

    def target_logit(self, similarity: Tensor, batch: GlobalBatch) -> Tensor:
        return self.scale * (1 - 2 / math.pi * (angle(similarity) + self.margin))

    def negative_transform(self, similarity: Tensor, batch: GlobalBatch) -> NegativeTransform:
        def linear_in_the_angle(logits: Tensor) -> Tensor:
            return self.scale * (1 - 2 / math.pi * angle(logits / self.scale))

        return linear_in_the_angle
