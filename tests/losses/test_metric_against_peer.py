"""The metric heads against pytorch-metric-learning, for the losses it has: values and gradients in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pytorch_metric_learning import losses, miners
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.reducers import MeanReducer
from torch import Tensor

from pipeline.config.heads import HeadConfig
from pipeline.config.metric_heads import (
    ContrastiveConfig,
    MarginBasedConfig,
    MultiSimilarityConfig,
    NPairConfig,
    TripletConfig,
)
from pipeline.model.head import build_head
from pipeline.model.metric.margin_based import MarginBasedHead
from tests.losses.metric_reference import EMBEDDING_DIM, NUM_CLASSES, SEED, STEP, Batch, make_batch, naive_loss

SQUARED = LpDistance(normalize_embeddings=True, p=2, power=2)
PLAIN = LpDistance(normalize_embeddings=True, p=2, power=1)

Peer = Callable[[Tensor, Tensor], Tensor]


def nearest_semi_hard(embeddings: Tensor, labels: Tensor) -> Tensor:
    """Theirs takes all semi-hard triplets; ours the nearest negative of each pair."""
    a, p, n = miners.TripletMarginMiner(margin=0.2, type_of_triplets="semihard", distance=SQUARED)(embeddings, labels)
    d = SQUARED(embeddings)[a, n]
    nearest: dict[tuple[int, int], int] = {}
    for place, pair in enumerate(zip(a.tolist(), p.tolist(), strict=True)):
        if pair not in nearest or d[place] < d[nearest[pair]]:
            nearest[pair] = place
    kept = torch.tensor(list(nearest.values()))
    mean = losses.TripletMarginLoss(margin=0.2, distance=SQUARED, reducer=MeanReducer())
    return mean(embeddings, labels, (a[kept], p[kept], n[kept]))


def batch_hard(embeddings: Tensor, labels: Tensor) -> Tensor:
    mined = miners.BatchHardMiner(distance=PLAIN)(embeddings, labels)
    mean = losses.TripletMarginLoss(margin=0.0, distance=PLAIN, smooth_loss=True, reducer=MeanReducer())
    return mean(embeddings, labels, mined)


def multi_similarity(embeddings: Tensor, labels: Tensor) -> Tensor:
    mined = miners.MultiSimilarityMiner(epsilon=0.1)(embeddings, labels)
    return losses.MultiSimilarityLoss(alpha=2, beta=50, base=0.5)(embeddings, labels, mined)


CASES: list[tuple[HeadConfig, Peer]] = [
    (TripletConfig(), nearest_semi_hard),
    (TripletConfig(mining="batch_all"), losses.TripletMarginLoss(margin=0.2, distance=SQUARED)),
    (TripletConfig(mining="batch_all", squared=False), losses.TripletMarginLoss(margin=0.2, distance=PLAIN)),
    (TripletConfig(mining="batch_hard", squared=False, soft_margin=True), batch_hard),
    (MultiSimilarityConfig(), multi_similarity),
    (NPairConfig(scale=20), losses.NTXentLoss(temperature=0.05)),
]


def ours(config: HeadConfig, batch: Batch) -> tuple[Tensor, Tensor]:
    head = build_head(config, NUM_CLASSES, EMBEDDING_DIM, SEED).double()
    embeddings = batch.embeddings.clone().requires_grad_()
    loss = head(embeddings, batch.labels, batch.sample_ids, batch.valid, STEP).loss
    loss.backward()
    assert embeddings.grad is not None
    return loss.detach(), embeddings.grad


@pytest.mark.parametrize("number", range(len(CASES)), ids=[f"{n}-{c.kind}" for n, (c, _) in enumerate(CASES)])
def test_equals_the_peer(number: int) -> None:
    config, peer = CASES[number]
    batch = make_batch("unmasked")
    loss, gradient = ours(config, batch)
    embeddings = batch.embeddings.clone().requires_grad_()
    expected = peer(embeddings, batch.labels)
    expected.backward()
    assert embeddings.grad is not None
    assert expected > 0.01
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
    assert torch.allclose(gradient, embeddings.grad, rtol=1e-7, atol=1e-10)


def test_margin_based_equals_the_peer_on_the_same_triplets() -> None:
    """Ours draws; the drawn triplets, found by loops, go to theirs. The gradient of β agrees too."""
    batch = make_batch("unmasked")
    betas = torch.full((NUM_CLASSES,), 0.9).double()
    triplets = torch.tensor(naive_loss(MarginBasedConfig(), batch, betas=betas).triplets)
    head = build_head(MarginBasedConfig(beta=0.9), NUM_CLASSES, EMBEDDING_DIM, SEED).double()
    assert isinstance(head, MarginBasedHead)
    loss = head(batch.embeddings, batch.labels, batch.sample_ids, batch.valid, STEP).loss
    loss.backward()
    peer = losses.MarginLoss(margin=0.2, beta=0.9, learn_beta=True, distance=PLAIN).double()
    expected = peer(batch.embeddings, batch.labels, tuple(triplets.t()))
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
    assert head.beta.grad is not None
    assert head.beta.grad.item() == pytest.approx(peer.beta.grad.item(), rel=1e-9)


def test_contrastive_positives_are_half_the_peers() -> None:
    """Theirs has no ½ and no square on the negatives' hinge: the positive part, and the count of the other."""
    batch = make_batch("unmasked")
    head = build_head(ContrastiveConfig(margin=1.2), NUM_CLASSES, EMBEDDING_DIM, SEED).double()
    metrics = head(batch.embeddings, batch.labels, batch.sample_ids, batch.valid, STEP).metrics
    peer = losses.ContrastiveLoss(pos_margin=0, neg_margin=-1, distance=SQUARED)
    assert metrics["positive_loss"].item() == pytest.approx(peer(batch.embeddings, batch.labels).item() / 2, rel=1e-9)
