"""Gradients cross ranks once a step, however many micro-batches it has; stage 2 is the exception it has to be."""

from __future__ import annotations

import functools

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from pipeline import dist
from pipeline.config.backbones import IResNetConfig
from pipeline.config.engine import DDPConfig, DeepSpeedConfig
from pipeline.config.optim import SGDConfig
from pipeline.engine.backend import Backend
from pipeline.engine.ddp import DDPBackend
from pipeline.engine.deepspeed import DeepSpeedBackend
from pipeline.model.backbones import build_backbone
from tests.distributed.processes import run_ranks

NUM_MICRO_BATCHES = 3
CROP_PX = 32
ENGINES = {"ddp": DDPConfig(), **{f"zero{stage}": DeepSpeedConfig(stage=stage) for stage in (0, 1, 2)}}  # type: ignore[arg-type]


def count_collectives() -> dict[str, list[int]]:
    """By engine, collectives of gloo in each micro-batch's forward and backward passes."""
    return {name: _count(_build(engine)) for name, engine in ENGINES.items()}


def _build(engine: DDPConfig | DeepSpeedConfig) -> Backend:
    model = build_backbone(IResNetConfig(depth=18, width=0.125, embedding_dim=16), CROP_PX, seed=0)
    device = torch.device("cpu")
    if isinstance(engine, DeepSpeedConfig):
        return DeepSpeedBackend(model, SGDConfig(), "fp32", device, engine)
    return DDPBackend(model, SGDConfig(), "fp32", device)


def _count(backend: Backend) -> list[int]:
    counts = []
    for number in range(NUM_MICRO_BATCHES):
        images = torch.randint(0, 256, (4, 3, CROP_PX, CROP_PX), dtype=torch.uint8)
        with (
            profile(activities=[ProfilerActivity.CPU]) as profiler,
            backend.accumulate(is_last=number == NUM_MICRO_BATCHES - 1),
        ):
            embeddings = backend.forward(images)
            backend.backward(embeddings, torch.full_like(embeddings, 1.0 + dist.rank()))
        counts.append(sum(event.name.startswith("gloo:") for event in profiler.events() or []))
    norm = backend.gradient_norm()
    assert float(dist.all_reduce_max(norm.clone())) == float(norm), "gradients differ between ranks"
    backend.step(0.0, norm, None)
    return counts


@functools.cache
def counted() -> dict[str, list[int]]:
    first, second = run_ranks(count_collectives, 2)
    assert first == second
    return dict(first)


@pytest.mark.parametrize("engine", ["ddp", "zero0", "zero1"])
def test_only_the_last_micro_batch_crosses_ranks(engine: str) -> None:
    *before, last = counted()[engine]
    assert before == [0] * (NUM_MICRO_BATCHES - 1)
    assert last > 0


def test_stage_2_keeps_no_gradient_of_others_so_each_micro_batch_crosses() -> None:
    assert all(count > 0 for count in counted()["zero2"])
