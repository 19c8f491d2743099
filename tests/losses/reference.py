"""Dense float64 margin softmax, written for clarity, that the sharded head is held against, and the cases for it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from pipeline import dist
from pipeline.config.margins import ArcFaceMargin, CosFaceMargin, MarginConfig, NormFaceMargin, SoftmaxMargin
from pipeline.model.head import HeadOutput
from pipeline.model.margins.base import Margin, build_margin
from pipeline.model.margins.cosine import ArcFace
from pipeline.model.partial_fc import MarginSoftmaxHead

GLOBAL_BATCH = 24
EMBEDDING_DIM = 16


class HardNegatives(ArcFace):
    """Not a published loss: it uses every hook that a margin has, to show that the head needs no change for one."""

    def __init__(self) -> None:
        super().__init__(16.0, 0.3, easy_margin=False, detach_margin_gradient=False)

    def negative_transform(
        self, similarity: Tensor, norm: Tensor, valid: Tensor, step: int
    ) -> Callable[[Tensor], Tensor]:
        mean = similarity[valid].mean()

        def emphasise(logits: Tensor) -> Tensor:
            cosine = logits / self.scale
            is_hard = cosine > similarity[:, None]
            return torch.where(is_hard, self.scale * cosine * (1 + mean + cosine), logits)

        return emphasise

    def sample_loss(self, target_logit: Tensor, negative_lse: Tensor, norm: Tensor) -> Tensor:
        return super().sample_loss(target_logit, negative_lse, norm) + 0.1 * norm


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
    block_bytes: int | None = 4 * 96 * GLOBAL_BATCH
    rounds: int = 1
    """Calls that the batch is split into."""
    dtype: torch.dtype = torch.float32

    def build_margin(self) -> Margin:
        return HardNegatives() if self.margin is None else build_margin(self.margin)


@dataclass(frozen=True)
class Batch:
    """Inputs of all ranks and parameters of all partitions, float64."""

    embeddings: Tensor
    labels: Tensor
    valid: Tensor
    centres: Tensor
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


ARCFACE = ArcFaceMargin(scale=64, margin=0.5)
CASES = [
    Case("softmax", SoftmaxMargin()),
    Case("normface", NormFaceMargin(scale=16)),
    Case("cosface", CosFaceMargin(scale=64, margin=0.35)),
    Case("arcface", ARCFACE),
    Case("arcface-easy", ArcFaceMargin(scale=30, margin=0.5, easy_margin=True)),
    Case("arcface-detached", ArcFaceMargin(scale=30, margin=0.5, detach_margin_gradient=True)),
    Case("hooks", None),
    Case("hooks-one-block", None, block_bytes=None),
    Case("one-block", ARCFACE, block_bytes=None),
    Case("one-row-blocks", ARCFACE, block_bytes=1),
    Case("softmax-one-block", SoftmaxMargin(), block_bytes=None),
    Case("no-mask", ARCFACE, bad_slots="none"),
    Case("all-masked", ARCFACE, bad_slots="all"),
    Case("all-masked-softmax", SoftmaxMargin(), bad_slots="all"),
    Case("three-classes", ARCFACE, num_classes=3),
    Case("three-classes-softmax", SoftmaxMargin(), num_classes=3),
    Case("five-classes", CosFaceMargin(), num_classes=5),
    Case("one-class", ARCFACE, num_classes=1),
    Case("one-identity", ARCFACE, labels="one"),
    Case("positives-on-one-rank", ARCFACE, labels="low"),
    Case("two-rounds", ARCFACE, rounds=2),
    Case("float64", ARCFACE, dtype=torch.float64),
    Case("float64-hooks", None, dtype=torch.float64),
    Case("float64-softmax-two-rounds", SoftmaxMargin(), dtype=torch.float64, rounds=2),
]


def make_batch(case: Case) -> Batch:
    """Draw a batch whose target cosines reach from near −1 to near 1."""
    generator = torch.Generator().manual_seed(sum(case.name.encode()))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    # each rank must compute with what the reference has, so the numbers are float32 ones
    centres = (0.05 * normal(case.num_classes, EMBEDDING_DIM)).float().double()
    bias = normal(case.num_classes).float().double()
    high = {"random": case.num_classes, "one": 1, "low": -(-case.num_classes // 4)}[case.labels]
    labels = torch.randint(0, high, (GLOBAL_BATCH,), generator=generator)
    towards = torch.linspace(-3, 3, GLOBAL_BATCH, dtype=torch.float64)[:, None]
    embeddings = towards * functional.normalize(centres[labels]) + 0.2 * normal(GLOBAL_BATCH, EMBEDDING_DIM)
    embeddings = (5 * embeddings).float().double()
    valid = torch.ones(GLOBAL_BATCH, dtype=torch.bool)
    if case.bad_slots != "none":
        bad = torch.tensor([1, 6, 7, 8, 23]) if case.bad_slots == "some" else torch.arange(GLOBAL_BATCH)
        valid[bad] = False
        labels[bad[::2]], labels[bad[1::2]] = -1, case.num_classes + 5
        embeddings[bad] = torch.nan
    return Batch(embeddings, labels, valid, centres, bias)


def dense(case: Case, batch: Batch) -> Result:
    """The whole logit matrix, the textbook's formulas, float64 and autograd."""
    embeddings = torch.where(batch.valid[:, None], batch.embeddings, 1).requires_grad_()
    centres, bias = batch.centres.clone().requires_grad_(), batch.bias.clone().requires_grad_()
    labels = torch.where(batch.valid, batch.labels, 0)
    is_target = functional.one_hot(labels, case.num_classes).bool()
    config = case.margin
    extra = torch.zeros(GLOBAL_BATCH, dtype=torch.float64)
    if isinstance(config, SoftmaxMargin):
        similarity = embeddings @ centres.t() + bias
        logits, scale = similarity, 1.0
    else:
        similarity = functional.normalize(embeddings) @ functional.normalize(centres).t()
        if config is None:
            scale, margin, target = 16.0, 0.3, similarity.detach()[is_target]
            hard = similarity * (1 + target[batch.valid].mean() + similarity)
            others = torch.where(similarity > target[:, None], hard, similarity)
            phi = _additive_angle(similarity, margin)
            extra = 0.1 * embeddings.norm(dim=1)
        else:
            scale, others = config.scale, similarity
            if isinstance(config, NormFaceMargin):
                phi = similarity
            elif isinstance(config, CosFaceMargin):
                phi = similarity - config.margin
            else:
                phi = _additive_angle(similarity, config.margin)
                if config.easy_margin:
                    phi = torch.where(similarity > 0, torch.cos(similarity.acos() + config.margin), similarity)
                if config.detach_margin_gradient:
                    phi = similarity + (phi - similarity).detach()
        logits = scale * torch.where(is_target, phi, others)
    losses = functional.cross_entropy(logits, labels, reduction="none") + extra
    count = batch.valid.sum().clamp(min=1)
    loss = torch.where(batch.valid, losses, 0).sum() / count
    loss.backward()
    negatives = logits.detach().masked_fill(is_target, -torch.inf)
    figures = {
        "accuracy": (scale * similarity[is_target] > negatives.amax(1)).double(),
        "negative_lse": negatives.logsumexp(1).nan_to_num(neginf=0),
        "embedding_norm": embeddings.norm(dim=1),
        "target_logit" if isinstance(config, SoftmaxMargin) else "target_cosine": similarity[is_target],
    }
    if config is None or isinstance(config, ArcFaceMargin):
        margin = 0.3 if config is None else config.margin
        figures["past_pi_share"] = (similarity[is_target].acos() + margin >= math.pi).double()
    metrics = {name: torch.where(batch.valid, figure.detach(), 0).sum() / count for name, figure in figures.items()}
    assert embeddings.grad is not None
    assert centres.grad is not None
    return Result(loss.detach(), metrics, embeddings.grad, centres.grad, bias.grad)


def on_this_rank(case: Case) -> Result:
    """Run the head on this rank's slots and classes of a case."""
    batch, rank, size = make_batch(case), dist.rank(), dist.world_size()
    head = MarginSoftmaxHead(case.num_classes, EMBEDDING_DIM, case.build_margin(), 0, case.block_bytes).to(case.dtype)
    start, stop = dist.partition(case.num_classes, rank, size)
    with torch.no_grad():
        head.class_centres.copy_(batch.centres[start:stop])
        if head.bias is not None:
            head.bias.copy_(batch.bias[start:stop])
    local = GLOBAL_BATCH // size
    slots = torch.arange(GLOBAL_BATCH)[rank * local : (rank + 1) * local]
    embeddings = batch.embeddings[slots].to(case.dtype).requires_grad_()
    num_valid = batch.valid.sum().float() if case.rounds > 1 else None
    outputs: list[HeadOutput] = []
    for part in slots.chunk(case.rounds):
        output = head(
            embeddings[part - slots[0]], batch.labels[part], part + 1000, batch.valid[part], 0, num_valid=num_valid
        )
        output.loss.backward()
        outputs.append(output)
    assert embeddings.grad is not None
    assert head.class_centres.grad is not None
    return Result(
        torch.stack([output.loss.detach() for output in outputs]).sum(),
        outputs[0].metrics,
        embeddings.grad / size,  # as the engine does
        head.class_centres.grad,
        None if head.bias is None else head.bias.grad,
    )


def on_this_rank_all(cases: list[Case]) -> list[Result]:
    """All cases in one launch."""
    return [on_this_rank(case) for case in cases]


def _additive_angle(cosine: Tensor, margin: float) -> Tensor:
    angle = cosine.acos() + margin
    return torch.where(angle < math.pi, torch.cos(angle), cosine - margin * math.sin(margin))
