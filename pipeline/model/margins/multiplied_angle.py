"""Margins that multiply the target's angle: L-softmax and SphereFace."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pipeline.model.margins.base import GlobalBatch, Margin, register_margin

MIN_LENGTH = 1e-12
"""Floor of lengths that divide."""

_CHEBYSHEV = {1: (0.0, 1.0), 2: (-1.0, 0.0, 2.0), 3: (0.0, -3.0, 0.0, 4.0), 4: (1.0, 0.0, -8.0, 0.0, 8.0)}
"""Coefficients of cos mθ as a polynomial in cos θ, lowest power first."""


def multiplied_angle(cosine: Tensor, m: int) -> Tensor:
    """ψ(θ) = (−1)^k cos(mθ) − 2k with k = ⌊mθ/π⌋, at most m − 1 (Liu et al. 2016, arXiv:1612.02295, equation 5).

    cos mθ is a Chebyshev polynomial in cos θ, so nothing divides by sin θ.
    """
    multiple = torch.zeros_like(cosine)
    for coefficient in reversed(_CHEBYSHEV[m]):
        multiple = multiple * cosine + coefficient
    k = torch.zeros_like(cosine)
    for number in range(1, m):
        k = k + (cosine.detach() <= math.cos(number * math.pi / m))
    return (1 - 2 * (k % 2)) * multiple - 2 * k


class _MultipliedAngle(Margin):
    """The target's logit is its similarity with cos θ replaced by (λ cos θ + ψ(θ))/(1 + λ), λ falling over the steps.

    Args:
        margin: m.
        annealing_start, annealing_rate, annealing_floor: λ = max(floor, start / (1 + rate · step)).
    """

    def __init__(self, margin: int, annealing_start: float, annealing_rate: float, annealing_floor: float) -> None:
        super().__init__()
        self.margin = margin
        self.annealing_start, self.annealing_rate = annealing_start, annealing_rate
        self.annealing_floor = annealing_floor

    def annealing(self, step: int) -> float:
        """λ."""
        return max(self.annealing_floor, self.annealing_start / (1 + self.annealing_rate * step))

    def annealed(self, cosine: Tensor, step: int) -> Tensor:
        """(λ cos θ + ψ)/(1 + λ)."""
        weight = self.annealing(step)
        return (weight * cosine + multiplied_angle(cosine, self.margin)) / (1 + weight)

    def metrics(self, similarity: Tensor, batch: GlobalBatch) -> dict[str, Tensor]:
        return {"annealing": similarity.new_tensor(self.annealing(batch.step))}


@register_margin("l_softmax")
class LSoftmax(_MultipliedAngle):
    """Target's logit ‖W‖‖x‖ψ(θ), the others W·x, no bias (Liu et al. 2016, arXiv:1612.02295, equations 4 and 5)."""

    is_cosine = False
    needs_centre_norm = True

    def logit_scale(self, norm: Tensor) -> float:
        return 1.0

    def target_logit(self, similarity: Tensor, batch: GlobalBatch) -> Tensor:
        assert batch.centre_norm is not None
        lengths = batch.norm * batch.centre_norm
        cosine = similarity / lengths.clamp(min=MIN_LENGTH)
        return lengths * self.annealed(cosine, batch.step)


@register_margin("sphereface")
class SphereFace(_MultipliedAngle):
    """A-softmax: target's logit ‖x‖ψ(θ), the others ‖x‖cos θ (Liu et al. 2017, arXiv:1704.08063, equation 7).

    Args:
        scale: s in place of ‖x‖; None keeps ‖x‖.
    """

    def __init__(
        self, margin: int, scale: float | None, annealing_start: float, annealing_rate: float, annealing_floor: float
    ) -> None:
        super().__init__(margin, annealing_start, annealing_rate, annealing_floor)
        self.scale = scale

    def logit_scale(self, norm: Tensor) -> Tensor | float:
        # what is divided by it must not be divided by zero
        return norm.clamp(min=MIN_LENGTH) if self.scale is None else self.scale

    def target_logit(self, similarity: Tensor, batch: GlobalBatch) -> Tensor:
        return self.logit_scale(batch.norm) * self.annealed(similarity, batch.step)
