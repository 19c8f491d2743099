"""Heads over separate label spaces, on 1 to 3 ranks, against each space's head on its own photos alone."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from pipeline import dist
from pipeline.config.errors import UserError
from pipeline.config.heads import CentreConfig, HeadConfig, HeadPart, MarginSoftmaxConfig, SumConfig
from pipeline.config.margins import CosFaceMargin
from pipeline.config.metric_heads import TripletConfig
from pipeline.config.optim import SGDConfig
from pipeline.engine.head_optim import HeadOptimizer
from pipeline.model.head import build_head
from pipeline.model.separate_heads import SeparateHeads, build_head_over, seed_of_space
from tests.distributed.processes import run_ranks

SPACES = (5, 3, 7)
SOFTMAX = MarginSoftmaxConfig(margin=CosFaceMargin(scale=8, margin=0.2), block_bytes=2048)
HEADS: dict[str, HeadConfig] = {
    "softmax": SOFTMAX,
    "sampled": SOFTMAX.model_copy(update={"sample_rate": 0.4}),
    "triplet": TripletConfig(margin=0.5),
    "sum": SumConfig(
        parts={"softmax": HeadPart(head=SOFTMAX), "centre": HeadPart(weight=0.3, head=CentreConfig(strength=0.5))}
    ),
}
DIM, NUM_SLOTS = 8, 24


@dataclass(frozen=True)
class Trace:
    losses: list[Tensor]
    gradients: list[Tensor]
    """[slots of this rank, D] of each step."""
    metrics: list[dict[str, Tensor]]


def batch(step: int) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings [24, D] float64, labels over all spaces (in step 1 none of the second), and the mask."""
    generator = torch.Generator().manual_seed(step)
    labels = torch.randint(0, sum(SPACES), (NUM_SLOTS,), generator=generator)
    if step == 1:
        labels = torch.where((labels >= 5) & (labels < 8), 0, labels)
    embeddings = torch.randn(NUM_SLOTS, DIM, generator=generator, dtype=torch.float64)
    return embeddings, labels, torch.rand(NUM_SLOTS, generator=generator) > 0.2


def train(name: str, calls: int) -> Trace:
    """Three steps on this rank's part of the batches, in one call of the head or in several."""
    head = build_head_over(HEADS[name], SPACES, DIM, seed=4).double()
    optimizer = HeadOptimizer(SGDConfig(lr=0.1), head)
    losses, gradients, metrics = [], [], []
    first, stop = dist.partition(NUM_SLOTS, dist.rank(), dist.world_size())
    for step in range(3):
        embeddings, labels, valid = (part[first:stop] for part in batch(step))
        leaf = embeddings.clone().requires_grad_()
        head.begin_step(labels, valid, step, 0.0)
        num_valid = dist.all_reduce_sum(valid.sum().clone()) if calls > 1 else None
        total = torch.zeros((), dtype=torch.float64)
        for part in torch.arange(stop - first).chunk(calls):
            output = head(leaf[part], labels[part], part + first, valid[part], step, num_valid=num_valid)
            output.loss.backward()
            total += output.loss.detach()
        losses.append(total)
        assert leaf.grad is not None
        gradients.append(leaf.grad / dist.world_size())
        metrics.append(output.metrics)
        optimizer.step(0.1, optimizer.gradient_norm(), None)
    return Trace(losses, gradients, metrics)


def reference(name: str) -> Trace:
    """Each space's photos through a head of their own, the losses weighted by their numbers."""
    heads = [build_head(HEADS[name], size, DIM, seed_of_space(4, n)).double() for n, size in enumerate(SPACES)]
    optimizers = [HeadOptimizer(SGDConfig(lr=0.1), head) for head in heads]
    losses, gradients = [], []
    for step in range(3):
        embeddings, labels, valid = batch(step)
        leaf = embeddings.clone().requires_grad_()
        total = torch.zeros((), dtype=torch.float64)
        start = 0
        for head, size in zip(heads, SPACES, strict=True):
            own = torch.nonzero(valid & (labels >= start) & (labels < start + size))[:, 0]
            mask = torch.ones(len(own), dtype=torch.bool)
            if not len(own):  # a head that sees nothing valid goes on by its momentum, as any head does
                own, mask = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.bool)
            own_labels = torch.where(mask, labels[own] - start, -1)
            head.begin_step(own_labels, mask, step, 0.0)
            output = head(leaf[own], own_labels, own, mask, step)
            total = total + output.loss * mask.sum() / valid.sum()
            start += size
        total.backward()
        losses.append(total.detach())
        assert leaf.grad is not None
        gradients.append(leaf.grad)
        for optimizer in optimizers:
            optimizer.step(0.1, optimizer.gradient_norm(), None)
    return Trace(losses, gradients, [])


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize(
    ("name", "calls"), [("softmax", 1), ("softmax", 2), ("sampled", 1), ("triplet", 1), ("sum", 1)]
)
def test_three_steps_equal_heads_that_never_meet(name: str, calls: int, world_size: int) -> None:
    expected = reference(name)
    traces = run_ranks(train, world_size, name, calls)
    for step in range(3):
        found = torch.cat([trace.gradients[step] for trace in traces])
        for trace in traces:
            torch.testing.assert_close(trace.losses[step], expected.losses[step], rtol=1e-10, atol=1e-12)
            assert all(value.isfinite() for value in trace.metrics[step].values())
            assert trace.metrics[step].keys() == traces[0].metrics[step].keys()
        torch.testing.assert_close(found, expected.gradients[step], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("label", [-1, sum(SPACES)])
def test_a_label_of_no_space_is_refused(label: int) -> None:
    head = build_head_over(SOFTMAX, SPACES, DIM, seed=0)
    embeddings, labels, valid = torch.randn(4, DIM), torch.tensor([0, 6, label, 9]), torch.ones(4, dtype=torch.bool)
    head.begin_step(labels, valid, 0, 0.0)
    with pytest.raises(UserError, match="label"):
        head(embeddings, labels, torch.arange(4), valid, 0)


def test_one_space_is_a_plain_head() -> None:
    assert not isinstance(build_head_over(SOFTMAX, (5,), DIM, seed=0), SeparateHeads)
    head = build_head_over(SOFTMAX, SPACES, DIM, seed=0)
    live = dict(head.named_parameters()) | dict(head.named_buffers())
    sharded = head.sharded_tensors()
    assert [rows for _, rows in sharded.values()] == list(SPACES)
    assert all(live[name] is tensor for name, (tensor, _) in sharded.items())
    first, second = (head.get_parameter(f"space_{number}.class_centres") for number in (0, 1))
    assert not torch.equal(first[:3], second), "spaces begin apart"
