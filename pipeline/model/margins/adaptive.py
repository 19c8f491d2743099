"""Margins and scales that move with what the batch looks like: AdaCos, CurricularFace, MagFace, AdaFace, ElasticFace.

Statistics are taken over the valid slots of the global batch, once a training step, and are buffers.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from pipeline.model.keyed import keyed_uniform
from pipeline.model.margins.base import GlobalBatch, Margin, NegativeTransform, angle, register_margin
from pipeline.model.margins.cosine import ArcFace, ScaledCosine, additive_angle, is_past_pi

_ELASTIC_DRAW = 0x454C4153544943
_LEAST_ANGLE = 1e-3
"""AdaFace keeps θ − m·z this far from 0 and π, where the cosine would turn."""


@register_margin("adacos")
class AdaCos(Margin):
    """Logits s·cos θ without a margin and without a scale to choose (Zhang et al. 2019, arXiv:1905.00292).

    Fixed: s = √2·ln(C − 1) (equation 9). Dynamic: s_t = ln B / cos(min(π/4, θ_med)), where B is the mean over samples
    of Σ_{k≠y} exp(s_{t−1} cos θ_k) and θ_med the median of the targets' angles (equations 13 to 15). It starts from the
    fixed one. Where negatives are sampled, B is divided by their share.
    """

    takes_num_classes = True
    scale: Tensor

    def __init__(self, dynamic: bool, num_classes: int) -> None:
        super().__init__()
        self.dynamic = dynamic
        self.needs_whole_batch = self.has_statistics = self.needs_class_pass = dynamic
        # with one or two classes the formula gives no scale at all
        self.register_buffer("scale", torch.tensor(math.sqrt(2) * math.log(max(num_classes, 3) - 1)))

    def logit_scale(self, norm: Tensor) -> Tensor:
        return self.scale.to(norm.dtype)

    def observe_classes(self, similarity: Tensor, negative_lse: Tensor, sample_rate: float, batch: GlobalBatch) -> None:
        valid = batch.valid
        log_mean = negative_lse[valid].logsumexp(0) - math.log(int(valid.sum())) - math.log(sample_rate)
        if log_mean.isfinite() and log_mean > 0:  # without another class there is nothing to adapt to
            median = torch.quantile(angle(similarity[valid]), 0.5).clamp(max=math.pi / 4)
            self.scale.copy_(log_mean / median.cos())

    def metrics(self, similarity: Tensor, batch: GlobalBatch) -> dict[str, Tensor]:
        return {"scale": self.scale.to(similarity.dtype)}


@register_margin("curricularface")
class CurricularFace(ArcFace):
    """ArcFace; a negative whose cosine passes the target's φ becomes cos θ·(t + cos θ) (Huang et al. 2020,
    arXiv:2004.00288, equations 4 to 6), t the moving average of the targets' cosines."""

    needs_whole_batch = True
    has_statistics = True
    t: Tensor

    def __init__(self, scale: float, margin: float, momentum: float) -> None:
        super().__init__(scale, margin, easy_margin=False, detach_margin_gradient=False)
        self.momentum = momentum
        self.register_buffer("t", torch.zeros(()))

    def observe(self, similarity: Tensor, batch: GlobalBatch) -> None:
        mean = similarity[batch.valid].mean().to(self.t.dtype)
        self.t.lerp_(mean, self.momentum)

    def negative_transform(self, similarity: Tensor, batch: GlobalBatch) -> NegativeTransform:
        threshold = self.target_logit(similarity, batch)[:, None]
        t, scale = self.t.to(similarity.dtype), self.scale

        def emphasise(logits: Tensor) -> Tensor:
            return torch.where(logits > threshold, logits * (t + logits / scale), logits)

        return emphasise

    def metrics(self, similarity: Tensor, batch: GlobalBatch) -> dict[str, Tensor]:
        return super().metrics(similarity, batch) | {"curriculum_t": self.t.to(similarity.dtype)}


@register_margin("magface")
class MagFace(ScaledCosine):
    """ArcFace with m(a) linear in the embedding's length a, and a loss λ(1/a + a/u²) on it (Meng et al. 2021,
    arXiv:2103.06627, equations 4 and 5, section 3.3). The gradient flows through m(a)."""

    def __init__(
        self,
        scale: float,
        least_norm: float,
        greatest_norm: float,
        least_margin: float,
        greatest_margin: float,
        regularisation: float,
    ) -> None:
        super().__init__(scale)
        self.least_norm, self.greatest_norm = least_norm, greatest_norm
        self.least_margin, self.greatest_margin = least_margin, greatest_margin
        self.regularisation = regularisation

    def target_logit(self, similarity: Tensor, batch: GlobalBatch) -> Tensor:
        return self.scale * additive_angle(similarity, self._margin(batch.norm))

    def sample_loss(self, target_logit: Tensor, reduced: Tensor, batch: GlobalBatch) -> Tensor:
        a = self._clipped(batch.norm)
        penalty = 1 / a + a / self.greatest_norm**2
        return super().sample_loss(target_logit, reduced, batch) + self.regularisation * penalty

    def metrics(self, similarity: Tensor, batch: GlobalBatch) -> dict[str, Tensor]:
        margin = self._margin(batch.norm.detach())
        return {"margin": margin, "past_pi_share": is_past_pi(similarity, margin).to(similarity.dtype)}

    def _clipped(self, norm: Tensor) -> Tensor:
        return norm.clamp(self.least_norm, self.greatest_norm)

    def _margin(self, norm: Tensor) -> Tensor:
        share = (self._clipped(norm) - self.least_norm) / (self.greatest_norm - self.least_norm)
        return self.least_margin + (self.greatest_margin - self.least_margin) * share


@register_margin("adaface")
class AdaFace(ScaledCosine):
    """φ = cos(θ − m·z) − (m + m·z), z the embedding's length in standard deviations from the mean, times h, clipped to
    [−1, 1] and without a gradient (Kim et al. 2022, arXiv:2204.00964, equations 14 to 16).

    A long embedding (a clear photo) gets an additive margin and no angular one, a short one the opposite. Mean and
    standard deviation are moving averages that start at 20 and 100.
    """

    needs_whole_batch = True
    has_statistics = True
    norm_mean: Tensor
    norm_deviation: Tensor

    def __init__(self, scale: float, margin: float, concentration: float, momentum: float) -> None:
        super().__init__(scale)
        self.margin, self.concentration, self.momentum = margin, concentration, momentum
        self.register_buffer("norm_mean", torch.tensor(20.0))
        self.register_buffer("norm_deviation", torch.tensor(100.0))

    def observe(self, similarity: Tensor, batch: GlobalBatch) -> None:
        norm = self._clipped(batch.norm.detach())[batch.valid]
        self.norm_mean.lerp_(norm.mean().to(self.norm_mean.dtype), self.momentum)
        if len(norm) > 1:  # one sample has no deviation
            self.norm_deviation.lerp_(norm.std().to(self.norm_deviation.dtype), self.momentum)

    def target_logit(self, similarity: Tensor, batch: GlobalBatch) -> Tensor:
        z = self._quality(batch.norm)
        theta = (angle(similarity) - self.margin * z).clamp(_LEAST_ANGLE, math.pi - _LEAST_ANGLE)
        return self.scale * (theta.cos() - self.margin * (1 + z))

    def metrics(self, similarity: Tensor, batch: GlobalBatch) -> dict[str, Tensor]:
        return {"quality": self._quality(batch.norm), "norm_mean": self.norm_mean.to(similarity.dtype)}

    def _clipped(self, norm: Tensor) -> Tensor:
        return norm.clamp(1e-3, 100.0)

    def _quality(self, norm: Tensor) -> Tensor:
        norm = self._clipped(norm.detach())
        mean, deviation = self.norm_mean.to(norm.dtype), self.norm_deviation.to(norm.dtype)
        return ((norm - mean) / (deviation + 1e-3) * self.concentration).clamp(-1, 1)


@register_margin("elasticface")
class ElasticFace(ScaledCosine):
    """ArcFace or CosFace with m ~ N(mean, deviation²) for each sample and step (Boutros et al. 2022, arXiv:2109.09416,
    equations 5 and 6). The draw is keyed by seed, step and sample.

    Args:
        form: arc or cos.
        scale: s.
        margin, deviation: of the draws; None: the paper's values for the form and for `plus`.
        plus: deal the batch's margins out by cosine, the greatest to the sample farthest from its centre (section 3.3).
    """

    def __init__(
        self, form: Literal["arc", "cos"], scale: float, margin: float | None, deviation: float | None, plus: bool
    ) -> None:
        super().__init__(scale)
        self.form, self.plus = form, plus
        self.needs_whole_batch = plus
        self.margin = {"arc": 0.5, "cos": 0.35}[form] if margin is None else margin
        usual = {"arc": 0.0175, "cos": 0.025}[form] if plus else 0.05
        self.deviation = usual if deviation is None else deviation

    def target_logit(self, similarity: Tensor, batch: GlobalBatch) -> Tensor:
        margin = self.draw(similarity.detach(), batch)
        if self.form == "cos":
            return self.scale * (similarity - margin)
        return self.scale * additive_angle(similarity, margin)

    def draw(self, similarity: Tensor, batch: GlobalBatch) -> Tensor:
        """The margins [N] of a batch, never below 0."""
        uniform = keyed_uniform(batch.seed ^ _ELASTIC_DRAW, batch.step, batch.sample_ids).clamp(min=2.0**-54)
        margin = (self.margin + self.deviation * torch.special.ndtri(uniform)).clamp(min=0).to(similarity.dtype)
        if self.plus:
            # masked slots sort behind all others on both sides, so that they take no one's margin
            farthest_first = similarity.masked_fill(~batch.valid, torch.inf).argsort(stable=True)
            greatest_first = margin.masked_fill(~batch.valid, -torch.inf).sort(descending=True).values
            margin = torch.empty_like(margin).scatter_(0, farthest_first, greatest_first).masked_fill(~batch.valid, 0)
        return margin

    def metrics(self, similarity: Tensor, batch: GlobalBatch) -> dict[str, Tensor]:
        return {"margin": self.draw(similarity, batch)}
