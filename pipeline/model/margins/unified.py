"""Unified cross-entropy: one learnt threshold between all positive and all negative pairs."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.model.margins.base import GlobalBatch, register_margin
from pipeline.model.margins.cosine import CosFace


@register_margin("unified")
class Unified(CosFace):
    """loss = softplus(b − s(cos θ_y − m)) + l·Σ_{j≠y} softplus(s·cos θ_j − b), b learnt (Zhou et al. 2023, UniFace,
    equations 9 to 12).

    The sum runs over all negatives and is no log-sum-exp; logits are not clamped.

    Args:
        scale, margin: s and m.
        negative_weight: l.
        negative_ratio: r; b starts at ln(10·C·r).
        num_classes: C.
    """

    takes_num_classes = True
    sums_softplus = True

    def __init__(
        self, scale: float, margin: float, negative_weight: float, negative_ratio: float, num_classes: int
    ) -> None:
        super().__init__(scale, margin)
        self.negative_weight = negative_weight
        self.threshold = nn.Parameter(torch.tensor(math.log(10 * num_classes * negative_ratio)))

    def negative_bias(self) -> Tensor:
        return -self.threshold

    def sample_loss(self, target_logit: Tensor, reduced: Tensor, batch: GlobalBatch) -> Tensor:
        positive = functional.softplus(self.threshold - target_logit, threshold=40)
        return positive + self.negative_weight * reduced

    def metrics(self, similarity: Tensor, batch: GlobalBatch) -> dict[str, Tensor]:
        return {"threshold": self.threshold.detach().to(similarity.dtype)}
