"""Dense float64 margin softmax, written for clarity, that the sharded head is held against, and the cases for it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from pipeline import dist
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
    MarginConfig,
    NormFaceMargin,
    SoftmaxMargin,
    SphereFaceMargin,
    UnifiedMargin,
)
from pipeline.model.head import HeadOutput
from pipeline.model.keyed import keyed_uniform
from pipeline.model.margins.base import GlobalBatch, Margin, build_margin
from pipeline.model.margins.cosine import ArcFace
from pipeline.model.partial_fc import HeadOptions, MarginSoftmaxHead

GLOBAL_BATCH = 24
EMBEDDING_DIM = 16
FIRST_ID = 1000
STEP = 3
SEED = 5


class HardNegatives(ArcFace):
    """Not a published loss: it uses every hook that a margin has, to show that the head needs no change for one."""

    def __init__(self) -> None:
        super().__init__(16.0, 0.3, easy_margin=False, detach_margin_gradient=False)

    def negative_transform(self, similarity: Tensor, batch: GlobalBatch) -> Callable[[Tensor], Tensor]:
        mean = similarity[batch.valid].mean()

        def emphasise(logits: Tensor) -> Tensor:
            cosine = logits / self.scale
            is_hard = cosine > similarity[:, None]
            return torch.where(is_hard, self.scale * cosine * (1 + mean + cosine), logits)

        return emphasise

    def sample_loss(self, target_logit: Tensor, reduced: Tensor, batch: GlobalBatch) -> Tensor:
        return super().sample_loss(target_logit, reduced, batch) + 0.1 * batch.norm


@dataclass(frozen=True)
class Case:
    """One comparison of the sharded head with the dense reference."""

    name: str
    margin: MarginConfig | None
    """None: `HardNegatives`."""
    num_classes: int = 37
    labels: str = "random"
    """random, one (a single identity), low (all in the first rank's partition)."""
    bad_slots: str = "some"
    """none, some or all slots masked, with NaN embeddings and labels outside."""
    options: HeadOptions = field(default=HeadOptions(block_bytes=4 * 40 * GLOBAL_BATCH * 4, keep_bytes=0))
    rounds: int = 1
    """Calls that the batch is split into."""
    dtype: torch.dtype = torch.float32

    def build_margin(self) -> Margin:
        return HardNegatives() if self.margin is None else build_margin(self.margin, self.num_classes)


@dataclass(frozen=True)
class Batch:
    """Inputs of all ranks and parameters of all partitions, float64."""

    embeddings: Tensor
    labels: Tensor
    valid: Tensor
    centres: Tensor
    """[C, K, D]."""
    bias: Tensor


@dataclass(frozen=True)
class Result:
    """What the reference or one rank gives."""

    loss: Tensor
    metrics: dict[str, Tensor]
    embeddings: Tensor
    """Gradient of the global loss."""
    centres: Tensor
    bias: Tensor | None
    margin: dict[str, Tensor]
    """Gradients of the margin's own parameters, averaged over ranks, and its buffers."""


ARCFACE = ArcFaceMargin(scale=64, margin=0.5)
PLAIN = HeadOptions(block_bytes=4 * 40 * GLOBAL_BATCH * 4, keep_bytes=0)


def options(**changes: object) -> HeadOptions:
    """Small blocks, nothing kept, but for the changes."""
    return HeadOptions(**{"block_bytes": PLAIN.block_bytes, "keep_bytes": 0, **changes})  # type: ignore[arg-type]


WHOLE = HeadOptions()
MARGINS: list[tuple[str, MarginConfig]] = [
    ("softmax", SoftmaxMargin()),
    ("normface", NormFaceMargin(scale=16)),
    ("normface-learnt", NormFaceMargin(scale=16, learns_scale=True)),
    ("l-softmax-2", LSoftmaxMargin(margin=2, annealing_floor=0, annealing_start=0)),
    ("l-softmax-4", LSoftmaxMargin(margin=4, annealing_start=10)),
    ("sphereface", SphereFaceMargin(annealing_start=10, annealing_floor=1)),
    ("sphereface-3-scaled", SphereFaceMargin(margin=3, scale=30, annealing_floor=0, annealing_start=0)),
    ("cosface", CosFaceMargin(scale=64, margin=0.35)),
    ("arcface", ARCFACE),
    ("arcface-easy", ArcFaceMargin(scale=30, margin=0.5, easy_margin=True)),
    ("arcface-detached", ArcFaceMargin(scale=30, margin=0.5, detach_margin_gradient=True)),
    ("combined", CombinedMargin(scale=30, m1=1.2, m2=0.3, m3=0.2)),
    ("combined-m1", CombinedMargin(scale=30, m1=2, m2=0, m3=0)),
    ("airface", AirFaceMargin()),
    ("adacos-fixed", AdaCosMargin(dynamic=False)),
    ("adacos-dynamic", AdaCosMargin()),
    ("curricularface", CurricularFaceMargin(momentum=0.3)),
    ("magface", MagFaceMargin(scale=30, least_norm=4, greatest_norm=14)),
    ("adaface", AdaFaceMargin(scale=30, momentum=0.9)),
    ("elasticface-arc", ElasticFaceMargin(scale=30)),
    ("elasticface-arc-plus", ElasticFaceMargin(scale=30, plus=True)),
    ("elasticface-cos", ElasticFaceMargin(form="cos", scale=30)),
    ("elasticface-cos-plus", ElasticFaceMargin(form="cos", scale=30, plus=True)),
    ("unified", UnifiedMargin(scale=30, negative_weight=0.7)),
]
CASES = [
    *(Case(name, margin) for name, margin in MARGINS),
    *(Case(f"{name}-float64", margin, dtype=torch.float64) for name, margin in MARGINS),
    *(Case(f"{name}-sampled", m, options=options(sample_rate=0.3)) for name, m in MARGINS if "-" not in name),
    *(
        Case(f"{name}-subcentres", margin, options=options(num_subcentres=3))
        for name, margin in MARGINS
        if "softmax" not in name
    ),
    Case("hooks", None),
    Case("hooks-one-block", None, options=WHOLE),
    Case("hooks-kept", None, options=options(keep_bytes=1 << 20)),
    Case("one-block", ARCFACE, options=WHOLE),
    Case("one-row-blocks", ARCFACE, options=options(block_bytes=1)),
    Case("two-blocks-kept", ARCFACE, options=options(block_bytes=4 * 4 * 40, keep_bytes=2 * 4 * 4 * GLOBAL_BATCH)),
    Case("all-blocks-kept", ARCFACE, options=options(block_bytes=4 * 4 * 40, keep_bytes=1 << 20)),
    Case("softmax-one-block", SoftmaxMargin(), options=WHOLE),
    Case("unified-kept", UnifiedMargin(scale=30), options=options(keep_bytes=1 << 20)),
    Case("filter", ARCFACE, options=options(negative_filter=0.1)),
    Case("filter-airface", AirFaceMargin(), options=options(negative_filter=0.1)),
    Case("filter-unified", UnifiedMargin(scale=30), options=options(negative_filter=0.1)),
    Case("filter-sphereface", SphereFaceMargin(annealing_start=10), options=options(negative_filter=0.1)),
    *(
        Case(f"{name}-smoothed{suffix}", margin, options=options(label_smoothing=0.2, **changes), dtype=dtype)
        for name, margin in MARGINS
        if name != "unified"
        for suffix, dtype, changes in (
            ("", torch.float32, {}),
            ("-float64-sampled", torch.float64, {"sample_rate": 0.3}),
        )
    ),
    Case("smoothed-hooks", None, options=options(label_smoothing=0.2), dtype=torch.float64),
    Case("smoothed-kept", ARCFACE, options=options(label_smoothing=0.2, keep_bytes=1 << 20), dtype=torch.float64),
    Case("smoothed-one-block", SoftmaxMargin(), options=HeadOptions(label_smoothing=0.2), dtype=torch.float64),
    Case("smoothed-filter", ARCFACE, options=options(label_smoothing=0.2, negative_filter=0.1), dtype=torch.float64),
    Case("smoothed-subcentres", ARCFACE, options=options(label_smoothing=0.2, num_subcentres=3), dtype=torch.float64),
    Case("smoothed-frozen-sampled", ARCFACE, options=options(label_smoothing=0.2, frozen_classes=20, sample_rate=0.3)),
    Case("smoothed-two-rounds", ARCFACE, options=options(label_smoothing=0.2), rounds=2),
    Case("smoothed-three-classes", ARCFACE, num_classes=3, options=options(label_smoothing=0.2)),
    Case("smoothed-one-class", ARCFACE, num_classes=1, options=options(label_smoothing=0.2)),
    Case("smoothed-all-masked", ARCFACE, bad_slots="all", options=options(label_smoothing=0.2)),
    Case("frozen", ARCFACE, options=options(frozen_classes=20)),
    Case("frozen-sampled", ARCFACE, options=options(frozen_classes=20, sample_rate=0.3)),
    Case("frozen-softmax", SoftmaxMargin(), options=options(frozen_classes=7)),
    Case("sampled-subcentres", ARCFACE, options=options(sample_rate=0.3, num_subcentres=2)),
    Case("sampled-two-rounds", ARCFACE, options=options(sample_rate=0.3), rounds=2),
    Case("sampled-three-classes", ARCFACE, num_classes=3, options=options(sample_rate=0.01)),
    Case("sampled-all-masked", ARCFACE, bad_slots="all", options=options(sample_rate=0.01)),
    Case("no-mask", ARCFACE, bad_slots="none"),
    *(Case(f"{name}-all-masked", margin, bad_slots="all") for name, margin in MARGINS),
    Case("three-classes", ARCFACE, num_classes=3),
    Case("three-classes-softmax", SoftmaxMargin(), num_classes=3),
    Case("five-classes", CosFaceMargin(), num_classes=5),
    *(Case(f"{name}-one-class", margin, num_classes=1) for name, margin in MARGINS),
    *(Case(f"{name}-one-identity", margin, labels="one") for name, margin in MARGINS),
    Case("positives-on-one-rank", ARCFACE, labels="low"),
    Case("two-rounds", ARCFACE, rounds=2),
    Case("float64-hooks", None, dtype=torch.float64),
    Case("float64-softmax-two-rounds", SoftmaxMargin(), dtype=torch.float64, rounds=2),
]


def make_batch(case: Case) -> Batch:
    """Draw a batch whose target cosines reach from near −1 to near 1."""
    generator = torch.Generator().manual_seed(sum(case.name.encode()))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    # each rank must compute with what the reference has, so the numbers are float32 ones
    centres = (0.05 * normal(case.num_classes, case.options.num_subcentres, EMBEDDING_DIM)).float().double()
    bias = normal(case.num_classes).float().double()
    high = {"random": case.num_classes, "one": 1, "low": -(-case.num_classes // 4)}[case.labels]
    labels = torch.randint(0, high, (GLOBAL_BATCH,), generator=generator)
    towards = torch.linspace(-3, 3, GLOBAL_BATCH, dtype=torch.float64)[:, None]
    embeddings = towards * functional.normalize(centres[labels, 0]) + 0.2 * normal(GLOBAL_BATCH, EMBEDDING_DIM)
    embeddings = (5 * embeddings).float().double()
    valid = torch.ones(GLOBAL_BATCH, dtype=torch.bool)
    if case.bad_slots != "none":
        bad = torch.tensor([1, 6, 7, 8, 23]) if case.bad_slots == "some" else torch.arange(GLOBAL_BATCH)
        valid[bad] = False
        labels[bad[::2]], labels[bad[1::2]] = -1, case.num_classes + 5
        embeddings[bad] = torch.nan
    return Batch(embeddings, labels, valid, centres, bias)


def on_this_rank(case: Case) -> Result:
    """Run the head on this rank's slots and classes of a case."""
    batch, rank, size = make_batch(case), dist.rank(), dist.world_size()
    head = MarginSoftmaxHead(case.num_classes, EMBEDDING_DIM, case.build_margin(), SEED, case.options).to(case.dtype)
    start, stop = dist.partition(case.num_classes, rank, size)
    with torch.no_grad():
        head.class_centres.copy_(batch.centres[start:stop].view_as(head.class_centres))
        if head.bias is not None:
            head.bias.copy_(batch.bias[start:stop])
    local = GLOBAL_BATCH // size
    slots = torch.arange(GLOBAL_BATCH)[rank * local : (rank + 1) * local]
    embeddings = batch.embeddings[slots].to(case.dtype).requires_grad_()
    num_valid = batch.valid.sum().float() if case.rounds > 1 else None
    head.begin_step(batch.labels[slots], batch.valid[slots], STEP, 0.0)
    outputs: list[HeadOutput] = []
    for part in slots.chunk(case.rounds):
        output = head(
            embeddings[part - slots[0]],
            batch.labels[part],
            part + FIRST_ID,
            batch.valid[part],
            STEP,
            num_valid=num_valid,
        )
        output.loss.backward()
        outputs.append(output)
    assert embeddings.grad is not None
    own = {f"d {name}": _averaged(p) for name, p in head.margin.named_parameters()}
    return Result(
        torch.stack([output.loss.detach() for output in outputs]).sum(),
        outputs[0].metrics,
        embeddings.grad / size,  # as the engine does
        whole_gradient(head, "class_centres"),
        None if head.bias is None else whole_gradient(head, "bias"),
        own | dict(head.margin.named_buffers()),
    )


def whole_gradient(head: MarginSoftmaxHead, name: str) -> Tensor:
    """A class parameter's gradient, zero where the step does not train it."""
    parameter = head.get_parameter(name)
    if name not in head.row_sparse():
        assert parameter.grad is not None
        return parameter.grad
    active, gradient = head.active_rows()[name], torch.zeros_like(parameter)
    found = active.gradient()
    assert found is not None
    gradient[active.rows] = found
    return gradient


def on_this_rank_all(cases: list[Case]) -> list[Result]:
    """All cases in one launch."""
    return [on_this_rank(case) for case in cases]


def dense(case: Case, batch: Batch) -> Result:
    """The whole logit matrix, the textbooks' formulas, float64 and autograd."""
    return _Dense(case, batch).result()


def _averaged(parameter: torch.nn.Parameter) -> Tensor:
    """A replicated parameter's gradient as the engine leaves it."""
    assert parameter.grad is not None
    return dist.all_reduce_sum(parameter.grad.clone()) / dist.world_size()


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
