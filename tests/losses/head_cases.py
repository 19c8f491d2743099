"""Cases in which the sharded head is held against the dense reference, and the head run on one of them."""

from __future__ import annotations

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


def _averaged(parameter: torch.nn.Parameter) -> Tensor:
    """A replicated parameter's gradient as the engine leaves it."""
    assert parameter.grad is not None
    return dist.all_reduce_sum(parameter.grad.clone()) / dist.world_size()
