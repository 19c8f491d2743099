"""Margins on the cosine or its angle: softmax, NormFace, CosFace, ArcFace."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pipeline.model.margins.base import Margin, register_margin, sine


@register_margin("softmax")
class Softmax(Margin):
    """Plain softmax: logits W·x + b."""

    is_cosine = False

    def logit_scale(self, norm: Tensor) -> float:
        return 1.0


@register_margin("normface")
class NormFace(Margin):
    """Normalised softmax without a margin: φ = cos θ (Wang et al. 2017, arXiv:1704.06369, equation 5)."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def logit_scale(self, norm: Tensor) -> float:
        return self.scale


@register_margin("cosface")
class CosFace(NormFace):
    """φ = cos θ − m (Wang et al. 2018, arXiv:1801.09414, equation 4)."""

    def __init__(self, scale: float, margin: float) -> None:
        super().__init__(scale)
        self.margin = margin

    def target_logit(self, similarity: Tensor, norm: Tensor, sample_ids: Tensor, step: int) -> Tensor:
        return self.scale * (similarity - self.margin)


@register_margin("arcface")
class ArcFace(NormFace):
    """φ = cos(θ + m) (Deng et al. 2019, arXiv:1801.07698, equation 3).

    Where θ + m would pass π, cos(θ + m) turns upwards; there φ = cos θ − m·sin m, which keeps falling.

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

    def target_logit(self, similarity: Tensor, norm: Tensor, sample_ids: Tensor, step: int) -> Tensor:
        phi = similarity * math.cos(self.margin) - sine(similarity) * math.sin(self.margin)
        if self.easy_margin:
            phi = torch.where(similarity > 0, phi, similarity)
        else:
            fallback = similarity - self.margin * math.sin(self.margin)
            phi = torch.where(self._is_past_pi(similarity), fallback, phi)
        if self.detach_margin_gradient:
            phi = similarity + (phi - similarity).detach()
        return self.scale * phi

    def metrics(self, similarity: Tensor) -> dict[str, Tensor]:
        return {"past_pi_share": self._is_past_pi(similarity).to(similarity.dtype)}

    def _is_past_pi(self, similarity: Tensor) -> Tensor:
        return similarity <= math.cos(math.pi - self.margin)
