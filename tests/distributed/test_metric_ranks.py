"""The metric heads against loops in float64, on 1, 2 and 4 ranks: loss, gradients, metrics, training."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from pipeline import dist
from pipeline.config.errors import UserError
from pipeline.config.metric_heads import TripletConfig
from pipeline.config.optim import AdamWConfig, HeadOptimizerConfig, SGDConfig
from pipeline.engine.head_optim import HeadOptimizer
from pipeline.model.head import Head, HeadOutput, build_head
from pipeline.model.metric.margin_based import MarginBasedHead
from tests.distributed.processes import run_ranks
from tests.losses.metric_reference import (
    CONFIGS,
    EMBEDDING_DIM,
    KINDS,
    NUM_CLASSES,
    NUM_SLOTS,
    SEED,
    STEP,
    Batch,
    make_batch,
    naive_loss,
    start_betas,
)

CASES = [(name, kind, torch.float64) for name in CONFIGS for kind in KINDS]
CASES += [(name, kind, torch.float32) for name in CONFIGS for kind in ("mixed", "empty_ranks")]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-11}


@dataclass(frozen=True)
class Result:
    """What one rank gives."""

    loss: Tensor
    metrics: dict[str, Tensor]
    embeddings: Tensor
    """Gradient of the global loss with respect to this rank's slots."""
    betas: Tensor | None
    """[C], gradient of the global loss; on this rank's classes, where they are split."""


def build(name: str, dtype: torch.dtype, block_bytes: int | None = 1024) -> Head:
    # a block of few anchors
    config = CONFIGS[name].model_copy(update={"block_bytes": block_bytes})
    head = build_head(config, NUM_CLASSES, EMBEDDING_DIM, SEED).to(dtype)
    if isinstance(head, MarginBasedHead) and head.is_per_class:
        first, last = dist.partition(NUM_CLASSES, dist.rank(), dist.world_size())
        with torch.no_grad():
            head.beta.copy_(start_betas()[first:last])
    return head


def call(head: Head, batch: Batch, embeddings: Tensor, step: int) -> HeadOutput:
    """The head on this rank's slots."""
    own = own_slots()
    head.begin_step(batch.labels[own], batch.valid[own], step, 0.0)
    return head(embeddings, batch.labels[own], batch.sample_ids[own], batch.valid[own], step)


def own_slots() -> slice:
    local = NUM_SLOTS // dist.world_size()
    return slice(dist.rank() * local, (dist.rank() + 1) * local)


def on_this_rank(name: str, kind: str, dtype: torch.dtype, block_bytes: int | None = 1024) -> Result:
    batch, size = make_batch(kind), dist.world_size()
    head = build(name, dtype, block_bytes)
    if "memory" in name:
        past = make_past(kind)
        call(head, past, past.embeddings[own_slots()].to(dtype), STEP - 1)
    embeddings = batch.embeddings[own_slots()].to(dtype).requires_grad_()
    output = call(head, batch, embeddings, STEP)
    output.loss.backward()
    assert embeddings.grad is not None
    betas = None
    if isinstance(head, MarginBasedHead):
        betas = torch.zeros(NUM_CLASSES, dtype=torch.float64)
        if head.is_per_class:
            active = head.active_rows()["beta"]
            assert active.leaf.grad is not None
            betas[active.rows + head.first_class] = active.leaf.grad.double()
        else:
            assert head.beta.grad is not None
            betas[0] = head.beta.grad.double() / size  # as the engine does, which then adds the ranks'
    return Result(output.loss.detach(), output.metrics, embeddings.grad / size, betas)


def make_past(kind: str) -> Batch:
    """A batch for the memory: other photos of the same people, and two of the very photos that follow."""
    past, batch = make_batch("mixed", seed=1), make_batch(kind)
    for number, slot in enumerate(batch.valid.nonzero().squeeze(1)[:2].tolist()):
        past.embeddings[number * 2] = batch.embeddings[slot] + 0.1
        past.labels[number * 2], past.sample_ids[number * 2] = batch.labels[slot], batch.sample_ids[slot]
    return past


def on_this_rank_all() -> list[Result]:
    return [on_this_rank(*case) for case in CASES]


@functools.cache
def results(world_size: int) -> list[list[Result]]:
    """Results of all cases by rank; one launch for all of them."""
    return [on_this_rank_all()] if world_size == 1 else run_ranks(on_this_rank_all, world_size)


@functools.cache
def expected(name: str, kind: str) -> tuple[float, dict[str, float], Tensor, Tensor]:
    """Loss, metrics and the gradients of embeddings and betas, by loops."""
    batch = make_batch(kind)
    embeddings = torch.where(batch.valid[:, None], batch.embeddings, 1).requires_grad_()
    batch = Batch(embeddings, batch.labels, batch.sample_ids, batch.valid)
    is_shared = name == "margin_based"
    # as the parameter starts: the float32 number nearest to the configured one
    betas = (torch.full((1,), 0.9).double() if is_shared else start_betas()).requires_grad_()
    past = make_past(kind) if "memory" in name else None
    naive = naive_loss(CONFIGS[name], batch, past, betas.expand(NUM_CLASSES) if is_shared else betas)
    naive.loss.backward()
    gradient = torch.zeros(NUM_CLASSES, dtype=torch.float64)
    if betas.grad is not None:
        gradient[: len(betas)] = betas.grad
    assert embeddings.grad is not None
    return naive.loss.item(), naive.metrics, embeddings.grad, gradient


def assert_close(found: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    assert found.shape == expected.shape, what
    error, size = (found.double() - expected).norm(), expected.norm()
    assert error <= tolerance * size + 1e-3 * tolerance, f"{what}: error {error:.3g} of {size:.3g}"


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("number", range(len(CASES)), ids=[f"{n}-{k}-{str(d)[-2:]}" for n, k, d in CASES])
def test_equals_loops(number: int, world_size: int) -> None:
    name, kind, dtype = CASES[number]
    ranks = [by_case[number] for by_case in results(world_size)]
    loss, metrics, embeddings, betas = expected(name, kind)
    tolerance = TOLERANCE[dtype]
    for rank in ranks:
        assert rank.loss.dtype == dtype
        assert torch.equal(rank.loss, ranks[0].loss), "the loss must be bit-equal on all ranks"
        assert rank.metrics.keys() == ranks[0].metrics.keys()
        assert all(torch.equal(value, ranks[0].metrics[key]) for key, value in rank.metrics.items())
        assert all(value.isfinite() and value.ndim == 0 for value in rank.metrics.values())
    assert ranks[0].loss.item() == pytest.approx(loss, rel=tolerance, abs=1e-3 * tolerance)
    for key, value in metrics.items():
        assert ranks[0].metrics[key].item() == pytest.approx(value, rel=1e-6), key
    found = torch.cat([rank.embeddings for rank in ranks])
    if kind == "repeats":
        # which of two equal samples a tie falls to is open: their gradients are compared together
        found, embeddings = (g.view(2, -1, EMBEDDING_DIM).sum(0) for g in (found, embeddings))
    assert_close(found, embeddings, tolerance, "embeddings")
    if name.startswith("margin_based"):
        assert_close(torch.stack([r.betas for r in ranks if r.betas is not None]).sum(0), betas, tolerance, "betas")


def test_cases_are_not_trivial() -> None:
    """Were most losses zero, the cases above would test little."""
    for name in CONFIGS:
        loss, metrics, embeddings, _ = expected(name, "mixed")
        assert loss > 0.01, name
        assert embeddings.norm() > 1e-3, name
        if "semi_hard" in name:
            assert metrics["num_triplets"] > 10
            assert metrics["num_dropped_pairs"] > 5
            assert 0.1 < metrics["hard_share"] < 0.9


def bad_labels() -> str:
    head = build("semi_hard", torch.float32)
    batch = make_batch("mixed")
    embeddings = batch.embeddings[own_slots()].float()
    if dist.rank() == dist.world_size() - 1:
        batch.labels[22] = NUM_CLASSES
    batch.sample_ids[22] = 4711
    with pytest.raises(UserError) as caught:
        call(head, batch, embeddings, 0)
    # the ranks are still in step
    batch.labels[22] = 0
    call(head, batch, embeddings, 0)
    return str(caught.value)


@pytest.mark.parametrize("size", [1, 2])
def test_a_label_out_of_range_names_the_sample_on_all_ranks(size: int) -> None:
    for message in [bad_labels()] if size == 1 else run_ranks(bad_labels, size):
        assert f"sample 4711 has label {NUM_CLASSES}; expected 0 to {NUM_CLASSES - 1}" in message


def train(name: str, optimizer: HeadOptimizerConfig, lr: float) -> dict[str, Tensor]:
    """Three steps of a linear backbone and the head's own optimizer; with memory, the later ones use it."""
    size = dist.world_size()
    generator = torch.Generator().manual_seed(3)
    model = nn.Linear(EMBEDDING_DIM, EMBEDDING_DIM).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
    head = build(name, torch.float64)
    head_optimizer = HeadOptimizer(optimizer, head)
    losses = []
    for step in range(3):
        batch = make_batch("mixed", seed=step)
        images = torch.where(batch.valid[:, None], batch.embeddings, 0)[own_slots()]
        loss = call(head, batch, model(images), step).loss
        loss.backward()
        losses.append(loss.detach())
        norm = head_optimizer.gradient_norm()
        with torch.no_grad():
            for parameter in model.parameters():
                assert parameter.grad is not None
                parameter -= 0.05 * dist.all_reduce_sum(parameter.grad) / size
                parameter.grad = None
        head_optimizer.step(lr, norm, None)
    state = {"losses": torch.stack(losses), "weight": model.weight.detach()}
    sharded = head.sharded_tensors()
    for key, value in head.state_dict().items():
        state[f"{'sharded' if key in sharded else 'head'}/{key}"] = value
    return state


TRAINED: list[tuple[str, HeadOptimizerConfig, float]] = [
    ("semi_hard", SGDConfig(), 0.1),
    ("semi_hard-memory", SGDConfig(), 0.1),
    ("contrastive-memory", SGDConfig(), 0.1),
    ("margin_based", SGDConfig(), 0.05),
    ("margin_based", AdamWConfig(), 0.02),
    ("margin_based-per_class", SGDConfig(), 0.05),
    ("margin_based-per_class", AdamWConfig(), 0.02),
    ("multi_similarity", SGDConfig(), 0.1),
]


def train_all() -> list[dict[str, Tensor]]:
    return [train(*case) for case in TRAINED]


@functools.cache
def trained(world_size: int) -> list[list[dict[str, Tensor]]]:
    return [train_all()] if world_size == 1 else run_ranks(train_all, world_size)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("number", range(len(TRAINED)), ids=[f"{n}-{o.kind}" for n, o, _ in TRAINED])
def test_three_steps_do_not_depend_on_the_number_of_ranks(number: int, size: int) -> None:
    single = trained(1)[0][number]
    ranks = [rank[number] for rank in trained(size)]
    for key, value in single.items():
        if key.startswith("sharded/"):
            assert torch.allclose(torch.cat([rank[key] for rank in ranks]), value, rtol=1e-6, atol=0), key
            continue
        for rank in ranks:
            assert torch.allclose(rank[key].double(), value.double(), rtol=1e-6, atol=1e-9), key
            assert torch.equal(rank[key], ranks[0][key]) or key == "weight", key


def test_training_moves_beta_where_the_batch_has_the_class_only() -> None:
    state = trained(1)[0][[case[0] for case in TRAINED].index("margin_based-per_class")]
    moved = state["sharded/beta"] != start_betas()
    seen = torch.cat([batch.labels[batch.valid] for batch in (make_batch("mixed", seed=s) for s in range(3))])
    assert moved.any()
    assert not moved[[c for c in range(NUM_CLASSES) if c not in seen.tolist()]].any()


def agree_in_float32() -> list[Result]:
    names = [name for name in CONFIGS if "memory" not in name]
    return [on_this_rank(name, "unmasked", torch.float32, None) for name in names]


@pytest.mark.parametrize("size", [2, 4])
def test_float32_agrees_between_numbers_of_ranks(size: int) -> None:
    single, ranks = agree_in_float32(), run_ranks(agree_in_float32, size)
    for number, one in enumerate(single):
        assert ranks[0][number].loss.item() == pytest.approx(one.loss.item(), rel=1e-6)
        assert_close(
            torch.cat([rank[number].embeddings for rank in ranks]), one.embeddings.double(), 1e-6, "embeddings"
        )


def test_the_order_of_slots_does_not_matter() -> None:
    """Where a sample stands, and so which rank has it, decides neither draws nor ties."""
    batch = make_batch("unmasked")
    order = torch.randperm(NUM_SLOTS, generator=torch.Generator().manual_seed(0))
    shuffled = Batch(batch.embeddings[order], batch.labels[order], batch.sample_ids[order], batch.valid[order])
    for mining in ("random", "semi_hard"):
        head = build_head(TripletConfig(mining=mining), NUM_CLASSES, EMBEDDING_DIM, SEED).double()
        losses = [call(head, b, b.embeddings, STEP).loss.item() for b in (batch, shuffled)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-12)
