"""Metric losses written as loops over pairs and triplets in float64, and the cases that the heads are held against."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.config.heads import HeadConfig
from pipeline.config.metric_heads import (
    ContrastiveConfig,
    MarginBasedConfig,
    MemoryConfig,
    MultiSimilarityConfig,
    NPairConfig,
    TripletConfig,
)
from pipeline.model.keyed import keyed_uniform

NUM_SLOTS = 24
EMBEDDING_DIM = 16
NUM_CLASSES = 30
SEED = 11
STEP = 7

CONFIGS: dict[str, HeadConfig] = {
    "contrastive": ContrastiveConfig(margin=1.2),
    "semi_hard": TripletConfig(),
    "semi_hard-plain": TripletConfig(squared=False, margin=0.3),
    "semi_hard-soft": TripletConfig(soft_margin=True, margin=0.5),
    "hard": TripletConfig(mining="hard"),
    "random": TripletConfig(mining="random", margin=0.6),
    "batch_hard": TripletConfig(mining="batch_hard"),
    "batch_hard-plain-soft": TripletConfig(mining="batch_hard", squared=False, soft_margin=True),
    "batch_all": TripletConfig(mining="batch_all"),
    "batch_all-plain-soft": TripletConfig(mining="batch_all", squared=False, soft_margin=True),
    "margin_based": MarginBasedConfig(beta=0.9),
    "margin_based-per_class": MarginBasedConfig(beta=0.9, beta_per_class=True),
    "multi_similarity": MultiSimilarityConfig(),
    "n_pair": NPairConfig(),
    "contrastive-memory": ContrastiveConfig(margin=1.2, memory=MemoryConfig(size=40, start_step=0)),
    "semi_hard-memory": TripletConfig(memory=MemoryConfig(size=40, start_step=0)),
    "hard-plain-memory": TripletConfig(mining="hard", squared=False, memory=MemoryConfig(size=40, start_step=0)),
}
KINDS = (
    "mixed",
    "unmasked",
    "one_identity",
    "one_sample",
    "all_masked",
    "no_pairs",
    "repeats",
    "pairs_on_one_rank",
    "empty_ranks",
)


@dataclass(frozen=True)
class Batch:
    """A global batch; masked slots hold NaN and labels outside."""

    embeddings: Tensor
    labels: Tensor
    sample_ids: Tensor
    valid: Tensor


@dataclass
class Naive:
    """What the loops give."""

    loss: Tensor
    """Scalar float64, with a graph."""
    metrics: dict[str, float] = field(default_factory=dict)
    triplets: list[tuple[int, int, int]] = field(default_factory=list)
    """Mined ones, as places among the valid slots."""


def make_batch(kind: str, seed: int = 0) -> Batch:
    """Draw a batch of loose clusters, with float32 numbers, so that both types compute with the same."""
    generator = torch.Generator().manual_seed(100 * seed + KINDS.index(kind))
    labels = torch.randint(0, 6, (NUM_SLOTS,), generator=generator)
    valid = torch.ones(NUM_SLOTS, dtype=torch.bool)
    sample_ids = torch.randperm(1000, generator=generator)[:NUM_SLOTS]
    if kind == "mixed":
        valid[[1, 6, 7, 8, 23]] = False
    elif kind == "one_identity":
        labels[:] = 3
    elif kind == "one_sample":
        valid[:] = False
        valid[5] = True
    elif kind == "all_masked":
        valid[:] = False
    elif kind == "no_pairs":
        labels = torch.arange(NUM_SLOTS)
    elif kind == "pairs_on_one_rank":
        labels = torch.arange(NUM_SLOTS)
        labels[:6] = torch.tensor([0, 0, 0, 1, 1, 1])
    elif kind == "empty_ranks":
        valid[:12] = False
    centres = torch.randn(NUM_CLASSES, EMBEDDING_DIM, generator=generator)
    embeddings = centres[labels] + 1.1 * torch.randn(NUM_SLOTS, EMBEDDING_DIM, generator=generator)
    if kind == "repeats":
        half = NUM_SLOTS // 2
        for values in (labels, sample_ids, embeddings):
            values[half:] = values[:half]
    embeddings[~valid] = torch.nan
    labels[~valid] = torch.where(torch.arange(int((~valid).sum())) % 2 == 0, -1, NUM_CLASSES + 5)
    return Batch(5 * embeddings.double(), labels, sample_ids, valid)


def start_betas() -> Tensor:
    """[C], different for each class."""
    return (0.8 + 0.01 * torch.arange(NUM_CLASSES)).float().double()


def naive_loss(
    config: HeadConfig, batch: Batch, past: Batch | None = None, betas: Tensor | None = None, step: int = STEP
) -> Naive:
    """The loss of a batch, with the valid slots of another one as memory."""
    rows = batch.valid.nonzero().squeeze(1)
    unit = functional.normalize(batch.embeddings[rows])
    labels, ids = batch.labels[rows].tolist(), batch.sample_ids[rows].tolist()
    gallery, gallery_labels, gallery_ids = unit, list(labels), list(ids)
    if past is not None:
        gallery = torch.cat([unit, functional.normalize(past.embeddings[past.valid]).detach()])
        gallery_labels += past.labels[past.valid].tolist()
        gallery_ids += past.sample_ids[past.valid].tolist()
    squared = (unit[:, None] - gallery[None]).square().sum(2)
    # zero gradient below the floor
    plain = torch.where(squared > 1e-6, squared.clamp(min=1e-6), 1e-6).sqrt()
    num = len(rows)

    def is_positive(a: int, g: int) -> bool:
        is_itself = g == a or (g >= num and gallery_ids[g] == ids[a])
        return gallery_labels[g] == labels[a] and not is_itself

    positives = [[g for g in range(len(gallery)) if is_positive(a, g)] for a in range(num)]
    # the order that draws count in: by label, then sample id, then slot
    ranked = sorted(range(len(gallery)), key=lambda g: (gallery_labels[g], gallery_ids[g], g))
    negatives = [[g for g in ranked if gallery_labels[g] != labels[a]] for a in range(num)]
    zero = batch.embeddings[rows].sum() * 0
    if isinstance(config, ContrastiveConfig):
        near = [squared[a, p] / 2 for a in range(num) for p in positives[a]]
        far = [(config.margin - plain[a, g]) ** 2 / 2 for a in range(num) for g in negatives[a]]
        far = [value for value, d in zip(far, _flat(plain, negatives), strict=True) if d < config.margin]
        metrics = {"num_positive_pairs": len(near), "num_negative_pairs": len(far)}
        return Naive(zero + _mean(near) + _mean(far), metrics)
    if isinstance(config, TripletConfig):
        return _triplet_loss(config, zero, squared if config.squared else plain, positives, negatives, ids, step)
    if isinstance(config, MarginBasedConfig):
        assert betas is not None
        return _margin_based_loss(config, zero, plain, positives, negatives, ids, labels, betas, step)
    cosine = 1 - squared / 2
    if isinstance(config, NPairConfig):
        values = [
            torch.log(1 + sum(torch.exp(config.scale * (cosine[a, g] - cosine[a, p])) for g in negatives[a]))
            for a in range(num)
            for p in positives[a]
            if negatives[a]
        ]
        return Naive(zero + _mean(values), {"num_pairs": len(values)})
    assert isinstance(config, MultiSimilarityConfig)
    values = []
    num_kept = [0, 0]
    for a in range(num):
        if not positives[a] or not negatives[a]:
            continue
        hardest_negative = max(cosine[a, g].item() for g in negatives[a])
        hardest_positive = min(cosine[a, g].item() for g in positives[a])
        kept = [p for p in positives[a] if cosine[a, p].item() < hardest_negative + config.mining_margin]
        met = [g for g in negatives[a] if cosine[a, g].item() > hardest_positive - config.mining_margin]
        num_kept = [num_kept[0] + len(kept), num_kept[1] + len(met)]
        alpha, beta = config.positive_scale, config.negative_scale
        pull = sum((torch.exp(-alpha * (cosine[a, p] - config.base)) for p in kept), zero)
        push = sum((torch.exp(beta * (cosine[a, g] - config.base)) for g in met), zero)
        values.append(torch.log(1 + pull) / alpha + torch.log(1 + push) / beta)
    metrics = {"num_kept_positive_pairs": num_kept[0], "num_kept_negative_pairs": num_kept[1]}
    return Naive(zero + sum(values, zero) / max(1, num), metrics)


def _triplet_loss(
    config: TripletConfig,
    zero: Tensor,
    d: Tensor,
    positives: list[list[int]],
    negatives: list[list[int]],
    ids: list[int],
    step: int,
) -> Naive:
    value = d.detach().tolist()
    pairs = [(a, p) for a, own in enumerate(positives) for p in own]
    if config.mining == "batch_hard":
        pairs = [(a, max(own, key=lambda p, a=a: value[a][p])) for a, own in enumerate(positives) if own]
    triplets = []
    num_hard_pairs = 0
    for a, p in pairs:
        others = negatives[a]
        nearest = min(others, key=lambda n, a=a: value[a][n], default=None)
        num_hard_pairs += nearest is not None and value[a][nearest] <= value[a][p]
        if config.mining == "semi_hard":
            others = [n for n in others if value[a][p] < value[a][n] < value[a][p] + config.margin]
        if not others:
            continue
        if config.mining == "batch_all":
            triplets += [(a, p, n) for n in others]
        elif config.mining == "random":
            draw = keyed_uniform(SEED, step, torch.tensor(ids[a]), torch.tensor(ids[p])).item()
            triplets.append((a, p, others[int(draw * len(others))]))
        else:
            triplets.append((a, p, min(others, key=lambda n, a=a: value[a][n])))
    values = [
        functional.softplus(d[a, p] - d[a, n], threshold=100)
        if config.soft_margin
        else functional.relu(d[a, p] - d[a, n] + config.margin)
        for a, p, n in triplets
    ]
    counted = [v for v in values if v.item() > 0] if config.mining == "batch_all" else values
    num_hard = sum(value[a][n] <= value[a][p] for a, p, n in triplets)
    num_semi_hard = sum(value[a][p] < value[a][n] < value[a][p] + config.margin for a, p, n in triplets)
    num_candidates = max(1, len(triplets) if config.mining == "batch_all" else len(pairs))
    metrics = {
        "num_triplets": len(triplets),
        "num_dropped_pairs": 0 if config.mining == "batch_all" else len(pairs) - len(triplets),
        "hard_share": (num_hard_pairs if config.mining == "semi_hard" else num_hard) / num_candidates,
        "semi_hard_share": num_semi_hard / num_candidates,
        "active_share": sum(v.item() > 0 for v in values) / max(1, len(values)),
    }
    return Naive(zero + _mean(counted), metrics, triplets)


def _margin_based_loss(
    config: MarginBasedConfig,
    zero: Tensor,
    d: Tensor,
    positives: list[list[int]],
    negatives: list[list[int]],
    ids: list[int],
    labels: list[int],
    betas: Tensor,
    step: int,
) -> Naive:
    triplets = []
    for a, own in enumerate(positives):
        weights = [_weight(d[a, n].item()) for n in negatives[a]]
        if sum(weights) == 0:
            continue
        for p in own:
            draw = keyed_uniform(SEED, step, torch.tensor(ids[a]), torch.tensor(ids[p])).item()
            below, place = 0.0, 0
            for place, weight in enumerate(weights):  # noqa: B007  read after the loop
                below += weight
                if below > draw * sum(weights):
                    break
            triplets.append((a, p, negatives[a][place]))
    values = [functional.relu(d[a, p] - betas[labels[a]] + config.margin) for a, p, _ in triplets]
    values += [functional.relu(betas[labels[a]] - d[a, n] + config.margin) for a, _, n in triplets]
    metrics = {"num_triplets": len(triplets), "num_dropped_pairs": sum(map(len, positives)) - len(triplets)}
    return Naive(zero + _mean([v for v in values if v.item() > 0]), metrics, triplets)


def _weight(d: float) -> float:
    """1/q(d) of Wu et al. without logarithms."""
    if d > 1.4:
        return 0.0
    d = max(d, 0.5)
    return 1 / (d ** (EMBEDDING_DIM - 2) * math.pow(1 - d * d / 4, (EMBEDDING_DIM - 3) / 2))


def _flat(values: Tensor, columns: list[list[int]]) -> list[float]:
    return [values[row, column].item() for row, own in enumerate(columns) for column in own]


def _mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean() if values else torch.zeros((), dtype=torch.float64)
