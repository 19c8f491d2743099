"""Gradient caching with a triplet head: the same backbone gradients as one graph over all micro-batches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from pipeline import dist
from pipeline.config.metric_heads import MarginBasedConfig, TripletConfig
from pipeline.config.optim import SGDConfig
from pipeline.data.counter import derive_keys
from pipeline.data.loader import MicroBatch, StepBatch
from pipeline.engine.batch_norm import RunningStatistics
from pipeline.engine.ddp import DDPBackend
from pipeline.engine.gradients import GradientPass
from pipeline.model.head import Head, build_head
from tests.distributed.processes import run_ranks

NUM_MICROS = 4
LOCAL_BATCH = 6
SEED = 5
STEP = 2


class Backbone(nn.Module):
    """Batch norm, whose groups are the micro-batches, and dropout, whose masks belong to stream positions."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 6, 3, bias=False),
            nn.BatchNorm2d(6),
            nn.PReLU(),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(96, 8),
        )

    def forward(self, images: Tensor) -> Tensor:
        embeddings: Tensor = self.layers(images.double() / 255)
        return embeddings


def make_parts() -> tuple[Backbone, list[MicroBatch], StepBatch]:
    """The backbone, the global batch's micro-batches and this rank's part of them."""
    torch.manual_seed(0)
    backbone = Backbone().double()
    generator = torch.Generator().manual_seed(1)
    micros = []
    for number in range(NUM_MICROS):
        valid = torch.ones(LOCAL_BATCH, dtype=torch.bool)
        if number == 1:
            valid[4:] = False
        micros.append(
            MicroBatch(
                images=torch.randint(0, 256, (LOCAL_BATCH, 3, 6, 6), generator=generator, dtype=torch.uint8),
                labels=torch.randint(0, 5, (LOCAL_BATCH,), generator=generator),
                sample_ids=torch.arange(LOCAL_BATCH) + 100 * number,
                valid=valid,
                position=LOCAL_BATCH * number,
                is_filler=False,
            )
        )
    share = NUM_MICROS // dist.world_size()
    own = micros[dist.rank() * share : (dist.rank() + 1) * share]
    return backbone, micros, StepBatch(0, own, NUM_MICROS, 0, 0.0, [])


def make_head(kind: str) -> Head:
    config = MarginBasedConfig() if kind == "margin_based" else TripletConfig(squared=False, margin=0.5)
    return build_head(config, 5, 8, SEED).double()


def cached(kind: str) -> dict[str, Tensor]:
    """By the engine: gradients, running statistics and the loss."""
    backbone, _, batch = make_parts()
    backend = DDPBackend(backbone, SGDConfig(), "fp32", torch.device("cpu"))
    head = make_head(kind)
    num_valid = torch.stack([micro.valid.sum().float() for micro in batch.micro_batches])
    statistics = RunningStatistics(backbone)
    gradients = GradientPass(backend, statistics, head, None, SEED)
    loss, _ = gradients.backward(batch, dist.all_reduce_sum(num_valid), STEP, 0.0)
    statistics.finish_step(batch.num_micro_batches_global)
    found = {name: parameter.grad for name, parameter in backbone.named_parameters() if parameter.grad is not None}
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None
        found[name] = dist.all_reduce_sum(parameter.grad) / dist.world_size()
    return {"loss": loss} | found | {name: b for name, b in backbone.named_buffers() if name.endswith(("mean", "var"))}


def in_one_graph(kind: str) -> dict[str, Tensor]:
    """By autograd alone: all micro-batches embedded, held, and differentiated together."""
    backbone, micros, _ = make_parts()
    head = make_head(kind)
    embeddings, buffers = [], []
    for micro in micros:
        own = {name: buffer.clone() for name, buffer in backbone.named_buffers()}
        torch.manual_seed(int(derive_keys(1, "dropout", SEED, micro.position)[0]) >> 1)
        embeddings.append(functional_call(backbone, own, (micro.images,)))
        buffers.append({name: buffer for name, buffer in own.items() if name.endswith(("mean", "var"))})
    labels, ids, valid = (torch.cat([getattr(m, field) for m in micros]) for field in ("labels", "sample_ids", "valid"))
    loss = head(torch.cat(embeddings), labels, ids, valid, STEP).loss
    loss.backward()
    parameters = [*backbone.named_parameters(), *head.named_parameters()]
    found = {name: parameter.grad for name, parameter in parameters if parameter.grad is not None}
    means = {name: torch.stack([b[name] for b in buffers]).mean(0) for name in buffers[0]}
    return {"loss": loss.detach()} | found | means


@pytest.mark.parametrize("kind", ["triplet", "margin_based"])
@pytest.mark.parametrize("size", [1, 2])
def test_equals_one_big_graph(size: int, kind: str) -> None:
    expected = in_one_graph(kind)
    assert expected["loss"] > 0.05
    for rank in [cached(kind)] if size == 1 else run_ranks(cached, size, kind):
        assert rank.keys() == expected.keys()
        for name, value in expected.items():
            assert value.abs().max() > 0, name
            assert torch.allclose(rank[name].double(), value, rtol=1e-6, atol=1e-9 * value.abs().max()), name


def test_batch_norm_sees_micro_batches() -> None:
    """How far the equality goes: another cut into micro-batches is another network, with other gradients."""
    backbone, micros, _ = make_parts()
    images = torch.cat([micro.images for micro in micros[:2]])
    backbone.layers[4].p = 0.0
    apart = torch.cat([backbone(part) for part in images.split(LOCAL_BATCH)])
    assert not torch.allclose(apart, backbone(images), rtol=1e-3)
