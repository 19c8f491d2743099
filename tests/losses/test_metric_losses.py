"""The metric heads in one process: gradients, precision, memory use, draws, what they show of a batch."""

from __future__ import annotations

import collections
import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.config.errors import UserError
from pipeline.config.heads import HeadConfig
from pipeline.config.load import validate_config
from pipeline.config.metric_heads import ContrastiveConfig, MarginBasedConfig, MemoryConfig, TripletConfig
from pipeline.data.counter import mix64
from pipeline.model.head import Head, HeadOutput, build_head
from pipeline.model.keyed import keyed_uniform
from pipeline.model.metric.base import MetricHead
from pipeline.model.metric.margin_based import log_weights
from pipeline.model.metric.memory import EmbeddingMemory
from tests.losses.metric_reference import CONFIGS, EMBEDDING_DIM, NUM_CLASSES, SEED, Batch, make_batch
from tests.losses.test_class_blocks import LargestTensor

WITHOUT_MEMORY = [name for name in CONFIGS if "memory" not in name]


def build(config: HeadConfig, num_classes: int = NUM_CLASSES, dim: int = EMBEDDING_DIM) -> Head:
    return build_head(config, num_classes, dim, SEED)


def call(head: Head, batch: Batch, embeddings: Tensor | None = None, step: int = 0) -> HeadOutput:
    if embeddings is None:
        embeddings = batch.embeddings
    head.begin_step(batch.labels, batch.valid, step, 0.0)
    return head(embeddings, batch.labels, batch.sample_ids, batch.valid, step)


@pytest.mark.parametrize("name", WITHOUT_MEMORY)
def test_gradcheck(name: str) -> None:
    batch = make_batch("unmasked")
    few = Batch(batch.embeddings[:10], batch.labels[:10] % 3, batch.sample_ids[:10], batch.valid[:10])
    head = build(CONFIGS[name]).double()
    assert torch.autograd.gradcheck(lambda e: call(head, few, e).loss, few.embeddings.clone().requires_grad_())


@pytest.mark.parametrize("name", CONFIGS)
def test_narrow_types_and_autocast(name: str) -> None:
    """float32 within 1e-5 of float64; bfloat16 input as its float32 copy, and near what it was rounded from."""
    batch = make_batch("unmasked")
    losses, gradients = {}, {}
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        head = build(CONFIGS[name])
        if dtype == torch.float64:
            head.double()
        embeddings = batch.embeddings.to(dtype, copy=True).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            output = call(head, batch, embeddings)
            output.loss.backward()
        assert output.loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert embeddings.grad is not None
        assert embeddings.grad.dtype == dtype
        losses[dtype], gradients[dtype] = output.loss.item(), embeddings.grad.double()
    exact = gradients[torch.float64]
    assert losses[torch.float32] == pytest.approx(losses[torch.float64], rel=1e-5)
    assert (gradients[torch.float32] - exact).norm() < 1e-5 * exact.norm()
    assert losses[torch.bfloat16] == pytest.approx(losses[torch.float64], rel=1e-2)
    # of mined losses a rounding can move a triplet in or out; of the others, gradients stay within 2 %
    if name in ("n_pair", "contrastive", "batch_hard-plain-soft", "batch_all-plain-soft"):
        assert (gradients[torch.bfloat16] - exact).norm() < 2e-2 * exact.norm()
    widened = call(build(CONFIGS[name]), batch, batch.embeddings.bfloat16().float()).loss.item()
    assert losses[torch.bfloat16] == widened


@pytest.mark.parametrize("name", CONFIGS)
def test_values_do_not_depend_on_the_block(name: str) -> None:
    batch, past = make_batch("mixed"), make_batch("mixed", seed=1)
    found = []
    for block_bytes in (1024, 2048, None):
        head = build(CONFIGS[name].model_copy(update={"block_bytes": block_bytes})).double()
        call(head, past, step=0)
        embeddings = batch.embeddings.clone().requires_grad_()
        output = call(head, batch, embeddings, step=1)
        output.loss.backward()
        assert embeddings.grad is not None
        found.append((output, embeddings.grad))
    for output, gradient in found[1:]:
        assert output.loss.item() == pytest.approx(found[0][0].loss.item(), rel=1e-12)
        assert torch.allclose(gradient, found[0][1], rtol=1e-9, atol=1e-13)
        for key, value in output.metrics.items():
            assert value.item() == pytest.approx(found[0][0].metrics[key].item(), rel=1e-12), key


@pytest.mark.parametrize("name", CONFIGS)
def test_masked_slots_get_no_gradient_whatever_they_hold(name: str) -> None:
    batch = make_batch("mixed")
    gradients = []
    for filling in (torch.nan, torch.inf, 0.0, 1e30):
        embeddings = batch.embeddings.masked_fill(~batch.valid[:, None], filling).requires_grad_()
        call(build(CONFIGS[name]).double(), batch, embeddings).loss.backward()
        assert embeddings.grad is not None
        assert not embeddings.grad[~batch.valid].any()
        gradients.append(embeddings.grad)
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_loss_of_nothing_has_a_graph(name: str) -> None:
    for kind in ("one_sample", "all_masked"):
        batch = make_batch(kind)
        embeddings = batch.embeddings.clone().requires_grad_()
        output = call(build(CONFIGS[name]).double(), batch, embeddings)
        output.loss.backward()
        assert output.loss.item() == 0
        assert embeddings.grad is not None
        assert not embeddings.grad.any()
        assert all(value.isfinite() for value in output.metrics.values())


@pytest.mark.parametrize("name", CONFIGS)
def test_an_embedding_that_is_not_finite_is_not_mined_away(name: str) -> None:
    batch = make_batch("unmasked")
    batch.embeddings[3, 2] = torch.nan
    assert not call(build(CONFIGS[name]), batch).loss.isfinite()


@pytest.mark.parametrize("name", CONFIGS)
def test_zero_embeddings_have_finite_gradients(name: str) -> None:
    batch = make_batch("unmasked")
    embeddings = batch.embeddings.clone()
    embeddings[:4] = 0
    embeddings.requires_grad_()
    call(build(CONFIGS[name]).double(), batch, embeddings).loss.backward()
    assert embeddings.grad is not None
    assert embeddings.grad.abs().max() < 100


@pytest.mark.parametrize("name", WITHOUT_MEMORY)
def test_no_tensor_grows_with_the_square_of_the_batch(name: str) -> None:
    num, dim, block_bytes = 512, 32, 32 * 1024
    head = build(CONFIGS[name].model_copy(update={"block_bytes": block_bytes}), num_classes=num, dim=dim)
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(num, dim, generator=generator).requires_grad_()
    ids = torch.arange(num)
    batch = Batch(embeddings, ids // 4, ids, torch.ones(num, dtype=torch.bool))
    with LargestTensor() as largest:
        call(head, batch, embeddings).loss.backward()
    # embeddings with the gradients of both terms, or a block; batch by batch would be 262,144
    assert largest.num_elements <= max(2 * num * dim, block_bytes // 4)


def test_memory_grows_with_neither_positives_nor_people() -> None:
    """One person on all photos: each block has as many positives as columns."""
    num, dim, block_bytes = 512, 32, 32 * 1024
    for name in ("semi_hard", "batch_all", "contrastive", "margin_based"):
        head = build(CONFIGS[name].model_copy(update={"block_bytes": block_bytes}), num_classes=2, dim=dim)
        embeddings = torch.randn(num, dim, generator=torch.Generator().manual_seed(0)).requires_grad_()
        ids = torch.arange(num)
        labels = (ids >= num - 4).long()
        with LargestTensor() as largest:
            call(head, Batch(embeddings, labels, ids, torch.ones(num, dtype=torch.bool)), embeddings).loss.backward()
        # pairs are handed on as positives and negatives side by side
        assert largest.num_elements <= max(2 * num * dim, 2 * block_bytes // 4 + 32)


@pytest.mark.parametrize("apart", [0.0, 5e-4])
def test_plain_distance_has_no_gradient_at_zero(apart: float) -> None:
    """Nor below its floor of 0.001: what is the same to a float32 cosine would be pushed at random."""
    two = torch.eye(EMBEDDING_DIM, dtype=torch.float64)[[0, 0]]
    two[1, 1] = apart
    two.requires_grad_()
    pair = Batch(two, torch.tensor([0, 1]), torch.tensor([5, 6]), torch.ones(2, dtype=torch.bool))
    output = call(build(ContrastiveConfig(margin=1.0)).double(), pair, two)
    output.loss.backward()
    assert output.loss.item() == pytest.approx((1 - 1e-3) ** 2 / 2)
    assert two.grad is not None
    assert two.grad.abs().max() < 1e-12


def test_keyed_draws_are_the_hash_of_their_counters() -> None:
    """Against the same finaliser in numpy, and uniform, and different for each seed, step and order of counters."""
    first, second = torch.arange(-20, 20_000), torch.arange(40, 20_060)
    found = keyed_uniform(2**63 + 5, 9, first, second)
    with np.errstate(over="ignore"):
        key = mix64(mix64(np.array([2**63 + 5], np.uint64)) ^ np.uint64(9))
        state = mix64(mix64(key ^ first.numpy().astype(np.uint64)) ^ second.numpy().astype(np.uint64))
        state = mix64(state)
    assert np.array_equal(found.numpy(), (state >> np.uint64(11)).astype(np.float64) * 2.0**-53)
    assert found.min() >= 0
    assert found.max() < 1
    counts = torch.histc(found, 20, 0, 1)
    assert ((counts - 1001) ** 2 / 1001).sum() < 45  # chi-squared with 19 degrees of freedom, 1 in 1,000
    others = [
        keyed_uniform(6, 9, first, second),
        keyed_uniform(5, 8, first, second),
        keyed_uniform(5, 9, second, first),
    ]
    assert all((other != found).double().mean() > 0.999 for other in others)


def test_distance_weights_are_the_inverse_density() -> None:
    cosine = torch.tensor([-torch.inf, 0.01, 0.0, 0.3, 0.5, 0.8, 0.9, 1.0], dtype=torch.float64)
    d = (2 - 2 * cosine).sqrt()
    clamped = d.clamp(min=0.5)
    density = clamped ** (8 - 2) * (1 - clamped**2 / 4) ** ((8 - 3) / 2)
    expected = torch.where(d <= 1.4, 1 / density, 0)
    assert expected[0] == expected[2] == 0
    assert torch.allclose(log_weights(cosine, 8).exp(), expected, rtol=1e-12)
    assert not log_weights(torch.linspace(-1, 1, 999), 512).isnan().any()


def test_negatives_are_drawn_by_distance() -> None:
    """Over many steps, the mean distance of what is drawn is the weighted mean; plain draws would be farther."""
    generator = torch.Generator().manual_seed(0)
    dim, num = 4, 40
    unit = functional.normalize(torch.randn(num, dim, generator=generator, dtype=torch.float64))
    ids = torch.arange(num)
    batch = Batch(unit, ids // 2, ids, torch.ones(num, dtype=torch.bool))
    is_negative = batch.labels[:, None] != batch.labels
    cosine = torch.where(is_negative, unit @ unit.t(), -torch.inf)
    weights, d = log_weights(cosine, dim).exp(), (2 - 2 * cosine).sqrt().nan_to_num(posinf=0)
    expected = ((weights * d).sum(1) / weights.sum(1)).mean().item()
    head = build(MarginBasedConfig(), dim=dim).double()
    drawn = torch.stack([call(head, batch, step=step).metrics["drawn_distance"] for step in range(150)])
    # 6,000 draws with a standard deviation of some 0.3
    assert drawn.mean().item() == pytest.approx(expected, abs=0.015)
    assert d[is_negative].mean() - expected > 0.2
    assert len(drawn.unique()) > 140


def test_an_anchor_without_near_negatives_draws_none() -> None:
    unit = torch.eye(4, dtype=torch.float64).repeat_interleave(2, 0)
    unit[1] += 0.1
    unit[6:] = -unit[:2]
    ids = torch.arange(8)
    embeddings = unit[[0, 1, 6, 7]].clone().requires_grad_()
    batch = Batch(embeddings, torch.tensor([0, 0, 1, 1]), ids[:4], torch.ones(4, dtype=torch.bool))
    output = call(build(MarginBasedConfig(), dim=4).double(), batch, embeddings)
    output.loss.backward()
    assert output.metrics["num_dropped_pairs"] == 4
    assert output.metrics["num_triplets"] == 0
    assert output.loss.item() == 0


def test_random_negatives_are_uniform_over_the_negatives() -> None:
    head = build(TripletConfig(mining="random", margin=4.0), dim=8).double()
    # anchor 0 and its positive; the other people sit at distances that tell them apart
    num_others = 5
    unit = torch.eye(8, dtype=torch.float64)[:1].repeat(2 + num_others, 1)
    for number in range(num_others):
        cosine = 0.1 * number
        unit[2 + number] = 0
        unit[2 + number, :2] = torch.tensor([cosine, math.sqrt(1 - cosine**2)])
    ids = torch.arange(2 + num_others)
    labels = torch.tensor([3, 3, 0, 1, 2, 4, 5])
    batch = Batch(unit, labels, ids, torch.ones(len(ids), dtype=torch.bool))
    losses = torch.stack([call(head, batch, step=step).loss for step in range(400)])
    # the mean of two draws' 4 − (2 − 2·cosine) = 2 + 2·cosine, cosine one of 0, 0.1, ... 0.4
    place = ((losses - 2) / 2 * 20).round().long()
    counts = torch.bincount(place, minlength=9).double()
    expected = torch.tensor([1, 2, 3, 4, 5, 4, 3, 2, 1]) / 25 * 400
    assert len(counts) == 9
    assert ((counts - expected) ** 2 / expected).sum() < 26  # chi-squared with 8 degrees of freedom, 1 in 1,000


class TestMemory:
    def config(self, size: int, start_step: int = 0) -> ContrastiveConfig:
        return ContrastiveConfig(memory=MemoryConfig(size=size, start_step=start_step))

    def memory_of(self, head: Head) -> EmbeddingMemory:
        assert isinstance(head, MetricHead)
        assert head.memory is not None
        return head.memory

    @pytest.mark.parametrize("size", [5, 24, 40, 70])
    def test_is_a_queue_of_the_newest(self, size: int) -> None:
        head = build(self.config(size)).double()
        memory = self.memory_of(head)
        queue: collections.deque[tuple[int, int]] = collections.deque(maxlen=size)
        for step in range(5):
            batch = make_batch("mixed", seed=step)
            rows = batch.valid.nonzero().squeeze(1).tolist()
            queue.extend(sorted((int(batch.labels[r]), int(batch.sample_ids[r])) for r in rows))
            call(head, batch, step=step)
            past = memory.recall()
            assert past is not None
            assert sorted(queue) == sorted(zip(past.labels.tolist(), past.sample_ids.tolist(), strict=True))
            assert (past.labels.diff() >= 0).all()
            unit = functional.normalize(batch.embeddings[rows])
            of_id = dict(zip(batch.sample_ids[rows].tolist(), unit, strict=True))
            newest = [row for row, key in enumerate(past.sample_ids.tolist()) if key in of_id]
            assert len(newest) >= min(size, len(rows))
            if step == 0:
                for row in newest:
                    assert torch.allclose(past.unit[row], of_id[int(past.sample_ids[row])], rtol=1e-12)

    def test_begins_after_the_warm_up_and_in_training_only(self) -> None:
        head, batch = build(self.config(40, start_step=3)), make_batch("mixed")
        for step in range(3):
            call(head, batch, step=step)
        assert self.memory_of(head).recall() is None
        head.eval()
        call(head, batch, step=3)
        assert self.memory_of(head).recall() is None
        head.train()
        call(head, batch, step=3)
        assert self.memory_of(head).recall() is not None

    def test_goes_through_a_checkpoint(self) -> None:
        straight, stopped = build(self.config(40)), build(self.config(40))
        batches = [make_batch("mixed", seed=seed) for seed in range(4)]
        expected = [call(straight, batch, step=step).loss for step, batch in enumerate(batches)]
        for step, batch in enumerate(batches[:2]):
            call(stopped, batch, step=step)
        resumed = build(self.config(40))
        assert set(resumed.state_dict()) == {
            f"memory.{name}" for name in ("embeddings", "labels", "sample_ids", "num_written")
        }
        resumed.load_state_dict(stopped.state_dict())
        for step in (2, 3):
            assert torch.equal(call(resumed, batches[step], step=step).loss, expected[step])

    def test_a_photo_is_no_pair_with_its_own_past(self) -> None:
        """The same batch again: photos meet their pasts, which are at distance 0, and other photos' pasts."""
        batch = make_batch("unmasked")
        head = build(self.config(24)).double()
        first = call(head, batch, step=0)
        second = call(head, batch, step=1)
        # each pair again with the past of the other photo, none with its own
        assert second.metrics["num_positive_pairs"] == 2 * first.metrics["num_positive_pairs"]
        assert second.loss.item() == pytest.approx(first.loss.item(), rel=1e-12)


def test_what_is_shown_of_a_batch() -> None:
    batch = make_batch("mixed")
    rows = batch.valid.nonzero().squeeze(1)
    metrics = call(build(CONFIGS["semi_hard"]).double(), batch).metrics
    unit = functional.normalize(batch.embeddings[rows])
    d = torch.cdist(unit, unit)
    is_pair = ~torch.eye(len(rows), dtype=torch.bool)
    is_same = batch.labels[rows][:, None] == batch.labels[rows]
    assert metrics["embedding_norm"].item() == pytest.approx(batch.embeddings[rows].norm(dim=1).mean().item())
    assert metrics["pairwise_distance_rms"].item() == pytest.approx(d[is_pair].square().mean().sqrt().item())
    for name, mask in (("positive", is_same & is_pair), ("negative", ~is_same)):
        assert metrics[f"{name}_distance"].item() == pytest.approx(d[mask].mean().item())
        for percent in (10, 50, 90):
            # a bin is 0.01 wide
            low, high = (d[mask].quantile(percent / 100, interpolation=way).item() for way in ("lower", "higher"))
            assert low - 0.01 <= metrics[f"{name}_distance_q{percent}"].item() <= high + 0.01


def test_collapse_is_seen() -> None:
    batch = make_batch("unmasked")
    head = build(TripletConfig())
    one_point = batch.embeddings[:1].float() + 1e-4 * batch.embeddings.float()
    assert call(head, batch, one_point).metrics["pairwise_distance_rms"] < 0.01
    assert call(head, batch, batch.embeddings.float()).metrics["pairwise_distance_rms"] > 0.8


def test_negative_distances_of_a_large_gallery_are_a_sample() -> None:
    num = 2100
    unit = functional.normalize(torch.randn(num, 8, generator=torch.Generator().manual_seed(0)))
    ids = torch.arange(num)
    metrics = call(
        build(TripletConfig(), num, 8), Batch(unit, ids // 2, ids, torch.ones(num, dtype=torch.bool))
    ).metrics
    d = torch.cdist(unit, unit)[ids[:, None] // 2 != ids // 2]
    assert metrics["negative_distance"].item() == pytest.approx(d.mean().item(), rel=0.01)
    assert metrics["negative_distance_q10"].item() == pytest.approx(d.quantile(0.1).item(), abs=0.02)


def test_a_negative_as_near_as_the_positive_is_hard() -> None:
    unit = torch.tensor([[1, 0, 0], [0.6, 0.8, 0], [0.6, 0, 0.8]], dtype=torch.float64)
    batch = Batch(unit, torch.tensor([1, 1, 0]), torch.arange(3), torch.ones(3, dtype=torch.bool))
    metrics = call(build(TripletConfig(), dim=3).double(), batch).metrics
    # from the second photo, the negative is 0.48 farther than the first: beyond the margin
    assert metrics["num_triplets"] == 0
    assert metrics["num_dropped_pairs"] == 2
    assert metrics["hard_share"] == 0.5
    assert metrics["semi_hard_share"] == 0


def test_memory_is_refused_where_it_does_not_belong() -> None:
    tree = {
        "output": "run",
        "data": {"path": "data"},
        "training": {"epochs": 1, "global_batch": 8, "local_batch": 4},
        "head": {"kind": "triplet", "mining": "batch_all", "memory": {"size": 10}},
    }
    with pytest.raises(UserError, match="memory goes with mining semi_hard or hard, not batch_all"):
        validate_config(tree)
    tree["head"] = {"kind": "triplet", "minning": "hard"}
    with pytest.raises(UserError, match="did you mean 'mining'"):
        validate_config(tree)
