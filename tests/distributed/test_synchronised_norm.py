"""Synchronised batch norm on several ranks is batch norm of one process over the joined batch."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from pipeline import dist
from pipeline.config.optim import SGDConfig
from pipeline.data.loader import MicroBatch, StepBatch
from pipeline.engine.batch_norm import RunningStatistics
from pipeline.engine.ddp import DDPBackend
from pipeline.engine.gradients import GradientPass
from pipeline.engine.synchronised_norm import synchronise
from pipeline.model.head import Head, HeadOutput
from tests.distributed.processes import run_ranks

LOCAL_BATCH, DIM = 4, 6


class Net(nn.Module):
    """[B, 3, 4, 4] uint8 to [B, 6]: a norm over pictures, one over vectors, one of them without a gain."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, bias=False)
        self.norm = nn.BatchNorm2d(5)
        self.embed = nn.Linear(5 * 2 * 2, DIM)
        self.last = nn.BatchNorm1d(DIM)
        self.last.weight.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.tanh(self.norm(self.conv(images.to(self.conv.weight.dtype) / 100 - 1)))
        return self.last(self.embed(x.flatten(1)))


class Towards(Head):
    """Sum over valid slots of (e · d(label) − 1)², which has no two embeddings meet: only batch norm makes them."""

    def __init__(self, needs_whole_batch: bool) -> None:
        super().__init__()
        self.needs_whole_batch = needs_whole_batch

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        sample_ids: Tensor,
        valid: Tensor,
        step: int,
        *,
        num_valid: Tensor | None = None,
        teacher_embeddings: Tensor | None = None,
    ) -> HeadOutput:
        directions = torch.sin(torch.outer(labels + 1.0, torch.arange(1.0, DIM + 1))).to(embeddings.dtype)
        total = dist.all_reduce_sum(valid.sum()) if num_valid is None else num_valid
        own = ((embeddings * directions).sum(1) - 1).square().mul(valid).sum() / total
        # the engine averages over ranks what has to be summed
        return HeadOutput(dist.sum_over_ranks(own), {})


@dataclass(frozen=True)
class Result:
    """What a step left."""

    loss: float
    gradients: dict[str, Tensor]
    buffers: dict[str, Tensor]


def micro_batch(number: int, is_filler: bool = False) -> MicroBatch:
    generator = torch.Generator().manual_seed(number)
    valid = torch.arange(LOCAL_BATCH) != number % LOCAL_BATCH  # one unreadable photo in each
    return MicroBatch(
        images=torch.randint(0, 256, (LOCAL_BATCH, 3, 4, 4), dtype=torch.uint8, generator=generator),
        labels=torch.arange(LOCAL_BATCH) + number,
        sample_ids=torch.arange(LOCAL_BATCH),
        valid=valid & (not is_filler),
        position=number * LOCAL_BATCH,
        is_filler=is_filler,
    )


def joined(numbers: list[int]) -> MicroBatch:
    """Several micro-batches as one."""
    parts = [micro_batch(number) for number in numbers]
    return MicroBatch(
        images=torch.cat([p.images for p in parts]),
        labels=torch.cat([p.labels for p in parts]),
        sample_ids=torch.cat([p.sample_ids for p in parts]),
        valid=torch.cat([p.valid for p in parts]),
        position=parts[0].position,
        is_filler=False,
    )


def step(micros: list[MicroBatch], num_micro_batches_global: int, is_synchronised: bool, whole: bool) -> Result:
    torch.manual_seed(0)
    model = Net().double()
    if is_synchronised:
        synchronise(model)
    backend = DDPBackend(model, SGDConfig(), "fp32", torch.device("cpu"))
    statistics = RunningStatistics(model)
    gradient_pass = GradientPass(backend, statistics, Towards(whole), None, seed=0)
    num_valid = torch.tensor([float(micro.valid.sum()) for micro in micros])
    num_valid = dist.all_reduce_sum(num_valid)
    batch = StepBatch(0, micros, num_micro_batches_global, 0, 0.0, [])
    loss, _ = gradient_pass.backward(batch, num_valid, 0, 0.0)
    statistics.finish_step(num_micro_batches_global)
    return Result(
        float(loss),
        {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None},
        {name: buffer.clone() for name, buffer in model.named_buffers()},
    )


def on_ranks(whole: bool) -> tuple[Result, Result]:
    """Of two rounds without gaps; of five micro-batches, whose last round has one on rank 0 and fillers elsewhere."""
    rank, size = dist.rank(), dist.world_size()
    full = step([micro_batch(rank), micro_batch(size + rank)], 2 * size, True, whole)
    last = micro_batch(size) if rank == 0 else micro_batch(size, is_filler=True)
    gappy = step([micro_batch(rank), last], size + 1, True, whole)
    return full, gappy


@functools.cache
def results(whole: bool) -> list[tuple[Result, Result]]:
    return run_ranks(on_ranks, 3, whole)


@pytest.mark.parametrize("whole", [False, True], ids=["by-micro-batch", "gradient-caching"])
@pytest.mark.parametrize("is_gappy", [False, True], ids=["full", "with-fillers"])
def test_ranks_together_normalise_as_one_process_over_the_joined_batch(whole: bool, is_gappy: bool) -> None:
    rounds = [[0, 1, 2], [3]] if is_gappy else [[0, 1, 2], [3, 4, 5]]
    micros = [joined(numbers) for numbers in rounds]
    expected = step(micros, len(rounds), False, whole=False)
    if is_gappy:
        # a round weighs as many micro-batches as it has
        alone = [step([micro], 1, False, whole=False).buffers for micro in micros]
        mean = {name: (3 * alone[0][name] + alone[1][name]) / 4 for name in alone[0]}
        expected = Result(expected.loss, expected.gradients, mean)
    for rank in results(whole):
        found = rank[is_gappy]
        assert found.loss == pytest.approx(expected.loss, rel=1e-7)
        assert found.gradients.keys() == expected.gradients.keys()
        for name, value in expected.gradients.items():
            torch.testing.assert_close(found.gradients[name], value, rtol=1e-5, atol=1e-7)
        for name, buffer in expected.buffers.items():
            torch.testing.assert_close(found.buffers[name].double(), buffer.double(), rtol=1e-6, atol=1e-9)


def test_eval_mode_is_that_of_plain_batch_norm() -> None:
    model = Net()
    images = micro_batch(0).images
    model(images)
    expected = model.eval()(images)
    synchronise(model)
    assert torch.equal(model(images), expected)
    assert list(model.state_dict()) == list(Net().state_dict())


def test_one_process_alone_trains_as_with_plain_batch_norm_in_lower_precision_too() -> None:
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        torch.manual_seed(0)
        plain, ours = nn.BatchNorm2d(5), nn.BatchNorm2d(5)
        synchronise(ours)
        assert isinstance(ours, nn.modules.batchnorm._BatchNorm)
        outputs, gradients = [], []
        for norm in (plain, ours):
            x = (
                (torch.randn(4, 5, 3, 3, generator=torch.Generator().manual_seed(1)) * 3 + 50)
                .to(dtype)
                .requires_grad_()
            )
            y = norm(x)
            assert y.dtype == dtype
            (y.float() * torch.arange(y.numel()).view_as(y)).sum().backward()
            outputs.append(y.float())
            assert x.grad is not None
            gradients.append(x.grad.float())
        torch.testing.assert_close(outputs[1], outputs[0], rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(
            gradients[1], gradients[0], rtol=tolerance, atol=tolerance * gradients[0].abs().max()
        )
        torch.testing.assert_close(ours.running_var, plain.running_var, rtol=1e-5, atol=1e-6)
