"""Dense float64 margin softmax, written for clarity, that the sharded head is held against."""

from __future__ import annotations

import math
import statistics

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.config.margins import (
    AdaCosMargin,
    AdaFaceMargin,
    AirFaceMargin,
    ArcFaceMargin,
    CombinedMargin,
    CosFaceMargin,
    CurricularFaceMargin,
    ElasticFaceMargin,
    LSoftmaxMargin,
    MagFaceMargin,
    NormFaceMargin,
    SoftmaxMargin,
    SphereFaceMargin,
    UnifiedMargin,
)
from pipeline.model.keyed import keyed_uniform
from tests.losses.head_cases import FIRST_ID, GLOBAL_BATCH, SEED, STEP, Batch, Case, Result


def dense(case: Case, batch: Batch) -> Result:
    """The whole logit matrix, the textbooks' formulas, float64 and autograd."""
    return _Dense(case, batch).result()


class _Dense:
    """One batch through the formulas of the papers, without blocks, ranks, or numerical care."""

    def __init__(self, case: Case, batch: Batch) -> None:
        self.case, self.config, self.options = case, case.margin, case.options
        self.valid = batch.valid
        self.embeddings = torch.where(batch.valid[:, None], batch.embeddings, 1).requires_grad_()
        self.centres, self.bias = batch.centres.clone().requires_grad_(), batch.bias.clone().requires_grad_()
        self.labels = torch.where(batch.valid, batch.labels, 0)
        self.is_target = functional.one_hot(self.labels, case.num_classes).bool()
        self.norm = self.embeddings.norm(dim=1)
        self.learnt: dict[str, Tensor] = {}
        self.buffers: dict[str, Tensor] = {}
        self.figures: dict[str, Tensor] = {}
        self.takes_part = torch.ones(case.num_classes, dtype=torch.bool)
        if self.options.sample_rate < 1:
            draws = keyed_uniform(SEED ^ 0x53414D504C45, STEP, torch.arange(case.num_classes))
            self.takes_part = draws < self.options.sample_rate
            self.takes_part[batch.labels[batch.valid]] = True
        self.is_cosine = not isinstance(self.config, SoftmaxMargin | LSoftmaxMargin)
        if self.is_cosine:
            unit = functional.normalize(self.centres, dim=2)
            self.similarity = torch.einsum("nd,ckd->nck", functional.normalize(self.embeddings), unit).amax(2)
        else:
            self.similarity = torch.einsum("nd,cd->nc", self.embeddings, self.centres[:, 0])
            if isinstance(self.config, SoftmaxMargin):
                self.similarity = self.similarity + self.bias
        self.target = self.similarity[self.is_target]
        # a masked slot may have any class, one that takes no part among them
        self.target_stat = self.target.detach()[self.valid]

    def result(self) -> Result:
        losses, negatives, greatest_from = self._losses()
        count = self.valid.sum().clamp(min=1)
        loss = torch.where(self.valid, losses, 0).sum() / count
        loss.backward()
        name = "negative_sum" if isinstance(self.config, UnifiedMargin) else "negative_lse"
        self.figures |= {
            "accuracy": (greatest_from > negatives.detach().amax(1)).double(),
            name: self.reduced.detach().nan_to_num(neginf=0),
            "embedding_norm": self.norm,
            "target_cosine" if self.is_cosine else "target_logit": self.target,
        }
        metrics = {
            name: torch.where(self.valid, figure.detach(), 0).sum() / count for name, figure in self.figures.items()
        }
        assert self.embeddings.grad is not None
        assert self.centres.grad is not None
        centres = self.centres.grad.squeeze(1) if self.options.num_subcentres == 1 else self.centres.grad
        bias = self.bias.grad
        for gradient in (centres, bias):
            if gradient is not None:
                gradient[: self.options.frozen_classes] = 0
        own = {f"d {name}": value.grad for name, value in self.learnt.items() if value.grad is not None}
        return Result(loss.detach(), metrics, self.embeddings.grad, centres, bias, own | self.buffers)

    def _losses(self) -> tuple[Tensor, Tensor, Tensor]:
        """Losses [N]; the other classes' logits [N, C] with −inf for what takes no part; the target's logit without
        any margin [N], which accuracy compares with them."""
        scale, phi, negatives, extra = self._formula()
        logits = scale * negatives if self.is_cosine else negatives
        left_out = self.is_target | ~self.takes_part
        if self.options.negative_filter is not None:
            left_out = left_out | (self.similarity > self.options.negative_filter)
        logits = logits.masked_fill(left_out, -torch.inf)
        plain_target = self.target * (scale.squeeze() if isinstance(scale, Tensor) else scale)
        if isinstance(self.config, UnifiedMargin):
            b = self.learnt["threshold"]
            self.reduced = functional.softplus(logits - b, threshold=200).sum(1)
            positive = functional.softplus(b - self.config.scale * phi, threshold=200)
            return positive + self.config.negative_weight * self.reduced, logits, plain_target
        target = phi * (scale.squeeze() if isinstance(scale, Tensor) else scale)
        self.reduced = logits.logsumexp(1)
        epsilon = self.options.label_smoothing
        if not epsilon:
            return torch.logaddexp(target, self.reduced) - target + extra, logits, plain_target
        # every class that takes part gets its share of epsilon, the target's among them
        log_p = torch.log_softmax(torch.cat([target[:, None], logits], 1), 1)
        takes_part = log_p > -torch.inf
        share = epsilon * takes_part.double() / takes_part.sum(1, keepdim=True)
        share[:, 0] += 1 - epsilon
        # a product with −inf would be NaN in the gradient
        losses = -(share * torch.where(takes_part, log_p, 0)).sum(1)
        return losses + extra, logits, plain_target

    def _formula(self) -> tuple[Tensor | float, Tensor, Tensor, Tensor]:
        """Scale, a number or [N, 1]; φ of the target [N]; what the other classes' cosines become [N, C]; a penalty."""
        c, config, none = self.target, self.config, torch.zeros(GLOBAL_BATCH, dtype=torch.float64)
        cosines = self.similarity
        match config:
            case None:
                hard = cosines * (1 + self.target_stat.mean() + cosines)
                others = torch.where(cosines > c.detach()[:, None], hard, cosines)
                self._note_past_pi(0.3)
                return 16.0, _additive_angle(c, 0.3), others, 0.1 * self.norm
            case SoftmaxMargin():
                return 1.0, c, cosines, none
            case NormFaceMargin(learns_scale=True):
                scale = torch.tensor(config.scale, dtype=torch.float64, requires_grad=True)
                self.learnt["scale"] = scale
                self.figures["scale"] = scale.expand(GLOBAL_BATCH)
                return scale, c, cosines, none
            case NormFaceMargin():
                return config.scale, c, cosines, none
            case LSoftmaxMargin():
                lengths = self.norm * self.centres[:, 0].norm(dim=1)[self.labels]
                phi = lengths * self._annealed(c / lengths, config)
                return 1.0, phi, cosines, none
            case SphereFaceMargin():
                scale = self.norm[:, None] if config.scale is None else config.scale
                return scale, self._annealed(c, config), cosines, none
            case CosFaceMargin():
                return config.scale, c - config.margin, cosines, none
            case ArcFaceMargin():
                phi = _additive_angle(c, config.margin)
                if config.easy_margin:
                    phi = torch.where(c > 0, torch.cos(c.acos() + config.margin), c)
                if config.detach_margin_gradient:
                    phi = c + (phi - c).detach()
                self._note_past_pi(config.margin)
                return config.scale, phi, cosines, none
            case CombinedMargin():
                theta = config.m1 * c.acos() + config.m2
                return config.scale, _falling(theta) - config.m3, cosines, none
            case AirFaceMargin():
                linear = (math.pi - 2 * cosines.acos()) / math.pi
                return config.scale, (math.pi - 2 * (c.acos() + config.margin)) / math.pi, linear, none
            case AdaCosMargin():
                return self._adacos(config), c, cosines, none
            case CurricularFaceMargin():
                t = config.momentum * self.target_stat.mean() if len(self.target_stat) else torch.zeros(())
                self.buffers["t"] = t
                self.figures["curriculum_t"] = t.double().expand(GLOBAL_BATCH)
                self._note_past_pi(config.margin)
                phi = _additive_angle(c, config.margin)
                others = torch.where(cosines > phi.detach()[:, None], cosines * (t + cosines), cosines)
                return config.scale, phi, others, none
            case MagFaceMargin():
                a = self.norm.clamp(config.least_norm, config.greatest_norm)
                slope = (config.greatest_margin - config.least_margin) / (config.greatest_norm - config.least_norm)
                m = config.least_margin + slope * (a - config.least_norm)
                self.figures["margin"] = m
                self._note_past_pi(m.detach())
                penalty = config.regularisation * (1 / a + a / config.greatest_norm**2)
                return config.scale, _additive_angle(c, m), cosines, penalty
            case AdaFaceMargin():
                return config.scale, self._adaface(config), cosines, none
            case ElasticFaceMargin():
                m = self._elastic_margins(config)
                self.figures["margin"] = m
                return config.scale, (c - m if config.form == "cos" else _additive_angle(c, m)), cosines, none
            case UnifiedMargin():
                b = _as_float32(math.log(10 * self.case.num_classes * config.negative_ratio)).requires_grad_()
                self.learnt["threshold"] = b
                self.figures["threshold"] = b.expand(GLOBAL_BATCH)
                return config.scale, c - config.margin, cosines, none
        raise AssertionError(config)

    def _annealed(self, cosine: Tensor, config: LSoftmaxMargin | SphereFaceMargin) -> Tensor:
        weight = max(config.annealing_floor, config.annealing_start / (1 + config.annealing_rate * STEP))
        self.figures["annealing"] = torch.full((GLOBAL_BATCH,), weight, dtype=torch.float64)
        theta = cosine.acos()
        k = torch.floor(config.margin * theta.detach() / math.pi).clamp(max=config.margin - 1)
        psi = (-1) ** k * torch.cos(config.margin * theta) - 2 * k
        return (weight * cosine + psi) / (1 + weight)

    def _adacos(self, config: AdaCosMargin) -> Tensor:
        scale = _as_float32(math.sqrt(2) * math.log(max(self.case.num_classes, 3) - 1))
        if config.dynamic and len(self.target_stat):
            others = self.takes_part & ~self.is_target
            exponentials = torch.where(others, (scale * self.similarity.detach()).exp(), 0).sum(1)
            mean = exponentials[self.valid].mean() / self.options.sample_rate
            if mean > 1:
                middle = self.target_stat.acos().quantile(0.5)
                scale = mean.log() / torch.cos(middle.clamp(max=math.pi / 4))
        self.buffers["scale"] = scale
        self.figures["scale"] = scale.expand(GLOBAL_BATCH)
        return scale

    def _adaface(self, config: AdaFaceMargin) -> Tensor:
        lengths = self.norm.detach().clamp(1e-3, 100)
        mean, deviation = torch.tensor(20.0).double(), torch.tensor(100.0).double()
        if self.valid.any():
            mean = mean + config.momentum * (lengths[self.valid].mean() - mean)
            deviation = deviation + config.momentum * (lengths[self.valid].std() - deviation)
        self.buffers |= {"norm_mean": mean, "norm_deviation": deviation}
        z = ((lengths - mean) / (deviation + 1e-3) * config.concentration).clamp(-1, 1)
        self.figures |= {"quality": z, "norm_mean": mean.expand(GLOBAL_BATCH)}
        theta = (self.target.acos() - config.margin * z).clamp(1e-3, math.pi - 1e-3)
        return theta.cos() - (config.margin + config.margin * z)

    def _elastic_margins(self, config: ElasticFaceMargin) -> Tensor:
        mean = {"arc": 0.5, "cos": 0.35}[config.form]
        deviation = {"arc": 0.0175, "cos": 0.025}[config.form] if config.plus else 0.05
        ids = torch.arange(GLOBAL_BATCH) + FIRST_ID
        draws = keyed_uniform(SEED ^ 0x454C4153544943, STEP, ids)
        normal = statistics.NormalDist(mean, deviation)
        margins = torch.tensor([normal.inv_cdf(draw) for draw in draws.tolist()], dtype=torch.float64)
        if not config.plus:
            return margins
        dealt = torch.zeros_like(margins)
        slots = self.valid.nonzero().squeeze(1).tolist()
        by_cosine = sorted(slots, key=lambda slot: self.target[slot].item())
        for slot, margin in zip(by_cosine, sorted(margins[self.valid].tolist(), reverse=True), strict=True):
            dealt[slot] = margin
        return dealt

    def _note_past_pi(self, margin: Tensor | float) -> None:
        self.figures["past_pi_share"] = (self.target.detach().acos() + margin >= math.pi).double()


def _as_float32(value: float) -> Tensor:
    """The head's parameters and buffers begin as float32 numbers."""
    return torch.tensor(value, dtype=torch.float32).double()


def _additive_angle(cosine: Tensor, margin: Tensor | float) -> Tensor:
    angle, m = cosine.acos() + margin, torch.as_tensor(margin, dtype=torch.float64)
    return torch.where(angle < math.pi, torch.cos(angle), cosine - m * torch.sin(m))


def _falling(theta: Tensor) -> Tensor:
    k = torch.floor(theta.detach() / math.pi)
    return (-1) ** k * torch.cos(theta) - 2 * k
