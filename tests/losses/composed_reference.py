"""Plain float64 versions of centre loss, distillation, harmonic triplets and sums of them, a few training steps each.

Written for clarity: loops over samples and pairs, whole matrices, autograd. The heads are held against them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from pipeline import checkpoint, dist
from pipeline.checkpoint_writer import save as save_checkpoint
from pipeline.config.heads import (
    CentreConfig,
    DistillationConfig,
    HarmonicConfig,
    HeadConfig,
    MarginSoftmaxConfig,
    SumConfig,
)
from pipeline.config.margins import CosFaceMargin, MarginConfig, SoftmaxMargin
from pipeline.config.metric_heads import TripletConfig
from pipeline.config.optim import SGDConfig
from pipeline.config.teacher_heads import LogitTarget, TeacherConfig
from pipeline.engine.head_optim import HeadOptimizer
from pipeline.model.head import Head, build_head
from pipeline.model.margins.base import build_margin
from pipeline.model.teacher import Teacher, TeacherClasses
from tests.checkpoints import make_info

GLOBAL_BATCH, EMBEDDING_DIM, SEED = 24, 16, 3
NUM_STEPS = 3
LR, MOMENTUM, DECAY = 0.5, 0.9, 0.01
EMBEDDINGS_LR = 0.3
TEACHER = TeacherConfig(checkpoint="unused")


@dataclass(frozen=True)
class Case:
    """A head and a batch for it."""

    name: str
    head: HeadConfig
    num_classes: int = 37
    labels: str = "random"
    """random, one (a single identity), low (all in the first rank's partition)."""
    bad_slots: str = "some"
    """none, some or all slots masked, with NaN embeddings and labels outside."""
    batch: int = GLOBAL_BATCH
    teacher_dim: int = EMBEDDING_DIM
    teacher_margin: MarginConfig = field(default_factory=lambda: CosFaceMargin(scale=16, margin=0.3))
    dtype: torch.dtype = torch.float64


@dataclass(frozen=True)
class Inputs:
    """Of all ranks, float64 with the values of float32 numbers."""

    embeddings: Tensor
    labels: Tensor
    valid: Tensor
    taught: Tensor
    """[N, D'], the teacher's embeddings."""
    class_centres: Tensor
    """[C, D'], the teacher's."""
    bias: Tensor
    """[C], the teacher's."""


@dataclass(frozen=True)
class Trace:
    """What a few steps of training gave."""

    losses: list[Tensor]
    gradients: list[Tensor]
    """Of the global losses with respect to the embeddings, [N, D] or a rank's rows of it."""
    tensors: dict[str, Tensor]
    """The head's parameters and buffers at the end; of sharded ones a rank's rows."""
    metrics: list[dict[str, Tensor]]


def make_inputs(case: Case) -> Inputs:
    """Draw a batch; embeddings and the teacher's lean towards a direction of their class."""
    generator = torch.Generator().manual_seed(sum(case.name.encode()))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    high = {"random": min(case.num_classes, 9), "one": 1, "low": -(-case.num_classes // 4)}[case.labels]
    labels = torch.randint(0, high, (case.batch,), generator=generator)
    embeddings = 2 * normal(case.num_classes, EMBEDDING_DIM)[labels] + normal(case.batch, EMBEDDING_DIM)
    taught = 2 * normal(case.num_classes, case.teacher_dim)[labels] + normal(case.batch, case.teacher_dim)
    valid = torch.ones(case.batch, dtype=torch.bool)
    if case.bad_slots != "none":
        bad = torch.tensor([1, 6, 7, 8, 23]) if case.bad_slots == "some" else torch.arange(case.batch)
        valid[bad] = False
        labels[bad[::2]], labels[bad[1::2]] = -1, case.num_classes + 5
        embeddings[bad], taught[bad] = torch.nan, torch.nan
    centres, bias = normal(case.num_classes, case.teacher_dim), normal(case.num_classes)
    return Inputs(embeddings.float().double(), labels, valid, taught.float().double(), centres.float().double(), bias)


def build(case: Case, inputs: Inputs) -> Head:
    """The head, its teacher attached; this rank's part of it."""
    head = build_head(case.head, case.num_classes, EMBEDDING_DIM, SEED)
    start, stop = dist.partition(case.num_classes, dist.rank(), dist.world_size())
    bias = inputs.bias[start:stop].to(case.dtype) if isinstance(case.teacher_margin, SoftmaxMargin) else None
    centres = inputs.class_centres[start:stop].to(case.dtype)
    if head.needs_teacher:
        classes = TeacherClasses(build_margin(case.teacher_margin, case.num_classes), centres, bias)
        head.attach_teacher(Teacher(case.teacher_dim, classes))
    return head.to(case.dtype)


def train(case: Case, num_steps: int = NUM_STEPS, load: Path | None = None, save: Path | None = None) -> Trace:
    """Train the head and the embeddings themselves on this rank's slots, with the engine's own optimizer.

    Args:
        load: a checkpoint of an earlier call to go on from, of any number of ranks.
        save: a directory to leave a checkpoint in at the end.
    """
    inputs, rank, size = make_inputs(case), dist.rank(), dist.world_size()
    head = build(case, inputs)
    optimizer = HeadOptimizer(SGDConfig(lr=LR, momentum=MOMENTUM, weight_decay=DECAY), head)
    local = case.batch // size
    slots = slice(rank * local, (rank + 1) * local)
    labels, valid, ids = inputs.labels[slots], inputs.valid[slots], torch.arange(case.batch)[slots] + 1000
    live = dict(head.state_dict()) | {f"optimizer/{name}": value for name, value in optimizer.tensors().items()}
    live["embeddings"] = inputs.embeddings[slots].to(case.dtype)
    first_step = 0
    if load is not None:
        checkpoint.load_into(load, _as_saved(case, live))
        first_step = checkpoint.read_info(load).step
    losses, gradients, metrics = [], [], []
    for step in range(first_step, num_steps):
        embeddings = live["embeddings"].clone().requires_grad_()
        taught = inputs.taught[slots] if head.needs_teacher else None
        head.begin_step(labels, valid, step, float(step))
        output = head(embeddings, labels, ids, valid, step, teacher_embeddings=taught)
        output.loss.backward()
        assert embeddings.grad is not None
        assert embeddings.grad.isfinite().all()
        losses.append(output.loss.detach())
        gradients.append(embeddings.grad / size)  # as the engine does
        metrics.append(output.metrics)
        optimizer.step(LR, optimizer.gradient_norm(), None)
        live["embeddings"] -= EMBEDDINGS_LR * gradients[-1]
    if save is not None:
        save_checkpoint(save, _as_saved(case, live), make_info(num_steps), keep=1)
    return Trace(losses, gradients, {name: tensor.detach().clone() for name, tensor in live.items()}, metrics)


def _as_saved(case: Case, live: dict[str, Tensor]) -> dict[str, Tensor]:
    mesh, sharded = checkpoint.rank_mesh(torch.device("cpu")), sharded_names(case)
    rows = {name: case.batch if name == "embeddings" else case.num_classes for name in sharded}
    return {
        name: checkpoint.shard_rows(tensor.detach(), rows[name], mesh) if name in sharded else tensor.detach()
        for name, tensor in live.items()
    }


def train_all(cases: list[Case]) -> list[Trace]:
    """All cases in one launch."""
    return [train(case) for case in cases]


def sharded_names(case: Case) -> set[str]:
    """Which of `Trace.tensors` are rows of something."""
    head = build(case, make_inputs(case))
    names = set(head.sharded_tensors())
    return {"embeddings"} | names | {f"optimizer/{name}/momentum_buffer" for name in names}


def reference(case: Case) -> Trace:
    """The same steps in one process, plainly."""
    inputs = make_inputs(case)
    # initial values are no part of what is compared
    tensors = {name: value.double().clone() for name, value in build(case, inputs).state_dict().items()}
    momentum: dict[str, Tensor] = {}
    embeddings = inputs.embeddings.clone()
    losses, gradients = [], []
    for step in range(NUM_STEPS):
        leaf = embeddings.clone().requires_grad_()
        leaves = {name: value.clone().requires_grad_() for name, value in tensors.items()}
        loss = torch.zeros((), dtype=torch.float64)
        buffers: dict[str, Tensor] = {}
        for prefix, weight, config in summands(case.head, step):
            if weight:
                part, moved = _loss(config, prefix, leaf, inputs, leaves, case)
                loss = loss + weight * part
                buffers |= moved
        if loss.requires_grad:
            loss.backward()
        gradient = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad.nan_to_num()
        for name, parameter in leaves.items():
            if name in buffers:
                tensors[name] = buffers[name]
            elif parameter.grad is not None:
                decayed = parameter.grad + (DECAY * parameter.detach() if parameter.ndim > 1 else 0)
                momentum[name] = MOMENTUM * momentum.get(name, torch.zeros_like(decayed)) + decayed
                tensors[name] = tensors[name] - LR * momentum[name]
        losses.append(loss.detach())
        gradients.append(gradient)
        embeddings = embeddings - EMBEDDINGS_LR * gradient
    return Trace(losses, gradients, tensors, [])


def summands(head: HeadConfig, epoch: float) -> list[tuple[str, float, HeadConfig]]:
    """Prefix of its tensors, weight and configuration of each head."""
    if not isinstance(head, SumConfig):
        return [("", 1.0, head)]
    found = []
    for name, part in head.parts.items():
        weight = part.weight
        if isinstance(weight, list):
            weight = dict(weight)[epoch]  # the cases have a point at every step
        found.append((f"part_{name}.", weight, part.head))
    return found


def _loss(
    config: HeadConfig, prefix: str, embeddings: Tensor, inputs: Inputs, tensors: dict[str, Tensor], case: Case
) -> tuple[Tensor, dict[str, Tensor]]:
    """A head's loss, and the buffers it moved."""
    chosen = [i for i in range(len(embeddings)) if inputs.valid[i]]
    x, t, labels = embeddings[chosen], inputs.taught[chosen], inputs.labels[chosen]
    if isinstance(config, CentreConfig):
        return _centre(config, prefix, x, labels, tensors)
    if not chosen:
        # a zero gradient, not none: decay goes on
        return sum(tensor.sum() * 0 for name, tensor in tensors.items() if name.startswith(prefix)), {}
    if isinstance(config, MarginSoftmaxConfig):
        assert isinstance(config.margin, CosFaceMargin)
        cosine = functional.normalize(x) @ functional.normalize(tensors[prefix + "class_centres"]).t()
        margins = config.margin.margin * functional.one_hot(labels, cosine.shape[1]).double()
        return functional.cross_entropy(config.margin.scale * (cosine - margins), labels), {}
    if isinstance(config, HarmonicConfig):
        return _harmonic(config, x, t, labels), {}
    if isinstance(config, TripletConfig):
        return _triplets(x, labels.tolist(), config.margin, lambda *places: True), {}
    assert isinstance(config, DistillationConfig)
    if prefix + "projection" in tensors:
        x = x @ tensors[prefix + "projection"].t()
    if isinstance(config.target, LogitTarget):
        return _logits(config.target, x, t, inputs, case.teacher_margin), {}
    if config.target.kind == "l2":
        return sum(((a - b) ** 2).sum() / 2 for a, b in zip(x, t, strict=True)) / len(x), {}
    return sum(1 - a @ b / (a.norm() * b.norm()) for a, b in zip(x, t, strict=True)) / len(x), {}


def _centre(
    config: CentreConfig, prefix: str, x: Tensor, labels: Tensor, tensors: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    centres = tensors[prefix + "centres"].detach()
    if config.normalise:
        x = x / x.norm(dim=1, keepdim=True)
    loss = x.sum() * 0
    for sample, label in zip(x, labels, strict=True):
        loss = loss + config.strength / 2 * ((sample - centres[label]) ** 2).sum() / len(x)
    moved = centres.clone()
    for label in range(len(centres)):
        own = [sample.detach() for sample, other in zip(x, labels, strict=True) if other == label]
        if own:
            delta = sum(centres[label] - sample for sample in own) / (1 + len(own))
            moved[label] = centres[label] - config.centre_rate * delta
    return loss, {prefix + "centres": moved}


def _logits(target: LogitTarget, x: Tensor, t: Tensor, inputs: Inputs, margin: MarginConfig) -> Tensor:
    centres, temperature = inputs.class_centres, target.temperature
    if isinstance(margin, SoftmaxMargin):
        student, teacher = (e @ centres.t() + inputs.bias for e in (x, t))
    else:
        assert isinstance(margin, CosFaceMargin)
        unit = centres / centres.norm(dim=1, keepdim=True)
        student, teacher = (margin.scale * (e / e.norm(dim=1, keepdim=True)) @ unit.t() for e in (x, t))
    log_p, log_q = (teacher / temperature).log_softmax(1), (student / temperature).log_softmax(1)
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum() / len(x)


def _harmonic(config: HarmonicConfig, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    """Triplets over the pool of both, one of the three being new at least."""
    return _triplets(torch.cat([x, t]), 2 * labels.tolist(), config.margin, lambda *places: min(places) < len(x))


def _triplets(pool: Tensor, labels: list[int], margin: float, is_allowed: Callable[..., bool]) -> Tensor:
    """Mean over all anchor–positive pairs with an allowed semi-hard negative, the nearest of them."""
    unit = pool / pool.norm(dim=1, keepdim=True)
    squared = [[((a - b) ** 2).sum() for b in unit] for a in unit]
    losses = []
    for anchor, positive in itertools.permutations(range(len(pool)), 2):
        if labels[anchor] != labels[positive]:
            continue
        near = squared[anchor][positive].item()
        candidates = [
            negative
            for negative in range(len(pool))
            if labels[negative] != labels[anchor]
            and is_allowed(anchor, positive, negative)
            and near < squared[anchor][negative].item() < near + margin
        ]
        if candidates:
            negative = min(candidates, key=lambda column: squared[anchor][column].item())
            losses.append(squared[anchor][positive] - squared[anchor][negative] + margin)
    return torch.stack(losses).mean() if losses else pool.sum() * 0
