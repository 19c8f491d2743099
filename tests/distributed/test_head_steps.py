"""Heads over several optimizer steps: the same on 1, 2 and 4 ranks, through a checkpoint, and only what was drawn."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from pipeline import dist
from pipeline.config.heads import MarginSoftmaxConfig
from pipeline.config.margins import ArcFaceMargin, CosFaceMargin, MarginConfig, SoftmaxMargin
from pipeline.config.optim import AdamConfig, AdamWConfig, HeadOptimizerConfig, SGDConfig
from pipeline.engine.head_optim import HeadOptimizer
from pipeline.model.head import Head, build_head
from tests.distributed.processes import run_ranks
from tests.losses.head_cases import MARGINS

NUM_CLASSES, DIM, BATCH, NUM_STEPS = 29, 12, 16, 3
SGD = SGDConfig(lr=0.1, momentum=0.9, weight_decay=0.01)
ADAM = AdamConfig(lr=0.01, weight_decay=0.1)
ADAMW = AdamWConfig(lr=0.01, weight_decay=0.1)


@dataclass(frozen=True)
class Case:
    """A head and its optimizer."""

    name: str
    head: MarginSoftmaxConfig
    optimizer: HeadOptimizerConfig = SGD


def head_of(margin: MarginConfig, **changes: object) -> MarginSoftmaxConfig:
    return MarginSoftmaxConfig(margin=margin, block_bytes=1024, **changes)  # type: ignore[arg-type]


ARCFACE = ArcFaceMargin(scale=16, margin=0.3)
CASES = [
    *(Case(name, head_of(margin)) for name, margin in MARGINS),
    *(Case(f"{name}-sampled", head_of(margin, sample_rate=0.4)) for name, margin in MARGINS),
    Case("adam-sampled", head_of(ARCFACE, sample_rate=0.4), ADAM),
    Case("adamw", head_of(ARCFACE), ADAMW),
    Case("adamw-sampled", head_of(ARCFACE, sample_rate=0.4), ADAMW),
    Case("adamw-softmax-sampled", head_of(SoftmaxMargin(), sample_rate=0.4), ADAMW),
    Case("subcentres-sampled", head_of(ARCFACE, sample_rate=0.4, num_subcentres=3)),
    Case("frozen", head_of(ARCFACE, frozen_classes=15)),
    Case("frozen-sampled-adamw", head_of(ARCFACE, frozen_classes=15, sample_rate=0.4), ADAMW),
]


def batch_of(step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Embeddings, labels, sample ids and mask of all ranks."""
    generator = torch.Generator().manual_seed(100 + step)
    embeddings = 3 * torch.randn(BATCH, DIM, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, NUM_CLASSES, (BATCH,), generator=generator)
    return embeddings, labels, torch.arange(BATCH) + BATCH * step, torch.arange(BATCH) % 7 != 3


def train(head: Head, optimizer: HeadOptimizer, steps: range) -> tuple[list[Tensor], list[Tensor]]:
    """Losses and this rank's gradients of the embeddings."""
    losses, gradients = [], []
    own = slice(dist.rank() * BATCH // dist.world_size(), (dist.rank() + 1) * BATCH // dist.world_size())
    for step in steps:
        embeddings, labels, ids, valid = (tensor[own] for tensor in batch_of(step))
        embeddings.requires_grad_()
        head.begin_step(labels, valid, step, 0.0)
        output = head(embeddings, labels, ids, valid, step)
        output.loss.backward()
        losses.append(output.loss.detach())
        assert embeddings.grad is not None
        gradients.append(embeddings.grad / dist.world_size())
        optimizer.step(0.05, optimizer.gradient_norm(), max_norm=1.0)
    return losses, gradients


def tensors_of(head: Head, optimizer: HeadOptimizer) -> dict[str, Tensor]:
    """What a checkpoint holds."""
    return {f"head/{name}": t for name, t in head.state_dict().items()} | {
        f"optimizer/{name}": t for name, t in optimizer.tensors().items()
    }


def built(case: Case) -> tuple[Head, HeadOptimizer]:
    head = build_head(case.head, NUM_CLASSES, DIM, seed=7).double()
    return head, HeadOptimizer(case.optimizer, head)


def whole_run(case: Case) -> tuple[list[Tensor], list[Tensor], dict[str, Tensor]]:
    head, optimizer = built(case)
    losses, gradients = train(head, optimizer, range(NUM_STEPS))
    found = {name: tensor.detach().clone() for name, tensor in tensors_of(head, optimizer).items()}
    sharded = {f"head/{name}" for name in head.sharded_tensors()}
    is_rows = {name: name in sharded or (name.startswith("optimizer/") and t.ndim > 0) for name, t in found.items()}
    return losses, gradients, {(name if is_rows[name] else f"same/{name}"): t for name, t in found.items()}


def resumed_run(case: Case) -> dict[str, Tensor]:
    """As `whole_run`, but a new head and optimizer take over from copies of the tensors after the first step."""
    first_head, first_optimizer = built(case)
    train(first_head, first_optimizer, range(1))
    head, optimizer = built(case)
    with torch.no_grad():
        copies = {name: t.detach().clone() for name, t in tensors_of(first_head, first_optimizer).items()}
        for name, tensor in tensors_of(head, optimizer).items():
            tensor.copy_(copies[name])
    train(head, optimizer, range(1, NUM_STEPS))
    return {name: tensor.detach().clone() for name, tensor in tensors_of(head, optimizer).items()}


def all_runs() -> list[tuple[list[Tensor], list[Tensor], dict[str, Tensor]]]:
    return [whole_run(case) for case in CASES]


@functools.cache
def results(world_size: int) -> list[list[tuple[list[Tensor], list[Tensor], dict[str, Tensor]]]]:
    return [all_runs()] if world_size == 1 else run_ranks(all_runs, world_size)


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("number", range(len(CASES)), ids=[case.name for case in CASES])
def test_any_number_of_ranks_trains_the_same(number: int, world_size: int) -> None:
    losses, gradients, tensors = results(1)[0][number]
    ranks = [runs[number] for runs in results(world_size)]
    for step in range(NUM_STEPS):
        for rank in ranks:
            assert_close(rank[0][step], losses[step])
        assert_close(torch.cat([rank[1][step] for rank in ranks]), gradients[step])
    for name, expected in tensors.items():
        parts = [rank[2][name] for rank in ranks]
        for found in parts if name.startswith("same/") else [torch.cat(parts)]:
            assert_close(found, expected)


def assert_close(found: Tensor, expected: Tensor) -> None:
    """To 1e-6 of the length; gradient norms, and with them clipping, are float32."""
    assert found.shape == expected.shape
    assert (found - expected).norm() <= 1e-6 * expected.norm()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_going_on_from_saved_tensors_is_bit_equal(case: Case) -> None:
    expected = {name.removeprefix("same/"): tensor for name, tensor in whole_run(case)[2].items()}
    found = resumed_run(case)
    assert found.keys() == expected.keys()
    assert [name for name, tensor in found.items() if not torch.equal(tensor, expected[name])] == []


@pytest.mark.parametrize("optimizer", [SGD, ADAM, ADAMW], ids=["sgd", "adam", "adamw"])
def test_rows_that_are_not_drawn_do_not_move_at_all(optimizer: HeadOptimizerConfig) -> None:
    head, optim = built(Case("", head_of(ARCFACE, sample_rate=0.3), optimizer))
    num_still = 0
    for step in range(4):
        before = {name: tensor.detach().clone() for name, tensor in tensors_of(head, optim).items()}
        assert before.keys() > {"head/class_centres"}
        train(head, optim, range(step, step + 1))
        drawn = torch.zeros(NUM_CLASSES, dtype=torch.bool)
        drawn[head.active_rows()["class_centres"].rows] = True
        labels, valid = batch_of(step)[1], batch_of(step)[3]
        assert drawn[labels[valid]].all()
        num_still += int((~drawn).sum())
        for name, tensor in tensors_of(head, optim).items():
            if tensor.ndim:
                moved = (
                    (tensor.detach() != before[name]).flatten(1).any(1) if tensor.ndim > 1 else tensor != before[name]
                )
                assert torch.equal(moved, drawn), f"{name}: momentum and decay must not reach rows that are not drawn"
    assert num_still > 20


@pytest.mark.parametrize("optimizer", [SGD, ADAM, ADAMW], ids=["sgd", "adam", "adamw"])
def test_drawing_all_rows_equals_the_dense_optimizer(optimizer: HeadOptimizerConfig) -> None:
    """A rate just below 1 goes the row-sparse way; with 29 classes it draws all of them."""
    outcomes = []
    for rate in (1.0, 1.0 - 1e-12):
        head, optim = built(Case("", head_of(ARCFACE, sample_rate=rate), optimizer))
        assert bool(head.row_sparse()) == (rate < 1)
        train(head, optim, range(NUM_STEPS))
        outcomes.append(head.get_parameter("class_centres").detach())
    torch.testing.assert_close(outcomes[0], outcomes[1], rtol=1e-10, atol=1e-12)


def test_draws_follow_seed_step_and_class_and_the_rate() -> None:
    def drawn(seed: int, step: int) -> set[int]:
        head = build_head(head_of(ARCFACE, sample_rate=0.25), 20_000, 4, seed)
        head.begin_step(torch.tensor([5]), torch.tensor([True]), step, 0.0)
        return set(head.active_rows()["class_centres"].rows.tolist())

    one = drawn(0, 0)
    assert 0.24 < len(one) / 20_000 < 0.26
    assert drawn(0, 0) == one
    for other in (drawn(1, 0), drawn(0, 1)):
        # independent draws share a quarter of their members
        assert 0.2 < len(one & other) / len(one) < 0.3


def test_frozen_centres_stay_bit_equal() -> None:
    for changes in ({}, {"sample_rate": 0.4}):
        head, optim = built(Case("", head_of(CosFaceMargin(scale=16), frozen_classes=15, **changes)))
        before = head.get_parameter("class_centres").detach().clone()
        train(head, optim, range(NUM_STEPS))
        after = head.get_parameter("class_centres").detach()
        assert torch.equal(after[:15], before[:15])
        assert not torch.equal(after[15:], before[15:])


def test_forward_without_begin_step_is_an_error_where_it_is_needed() -> None:
    head, _ = built(Case("", head_of(ARCFACE, sample_rate=0.4)))
    embeddings, labels, ids, valid = batch_of(0)
    with pytest.raises(RuntimeError, match="begin_step"):
        head(embeddings, labels, ids, valid, 0)
