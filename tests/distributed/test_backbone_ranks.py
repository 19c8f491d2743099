"""Every kind of backbone under DDP: the gradients of one process, random masks included, and no warning of layouts."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from pipeline import dist
from pipeline.config.heads import MarginSoftmaxConfig
from pipeline.config.margins import CosFaceMargin
from pipeline.config.optim import SGDConfig
from pipeline.data.loader import MicroBatch, StepBatch
from pipeline.engine.batch_norm import RunningStatistics
from pipeline.engine.ddp import DDPBackend
from pipeline.engine.gradients import GradientPass
from pipeline.model.backbones import build_backbone
from pipeline.model.head import build_head
from tests.backbones import DIM, HAS_TIMM, SMALL, as_loaded, usual_crop_px
from tests.distributed.processes import run_ranks

NUM_MICROS = 4
LOCAL_BATCH = 4
SEED = 5
NAMES = ["iresnet18-se", "iresnet18-aligned", "sphereface20", "inception", "vit-masked", "mobilefacenet"]
NAMES += ["timm-vit"] if HAS_TIMM else []


@contextmanager
def standard_error() -> Iterator[list[str]]:
    """What C++ code writes there too; in the list once the block is left."""
    texts: list[str] = []
    before = os.dup(2)
    with tempfile.TemporaryFile("w+") as file:
        os.dup2(file.fileno(), 2)
        try:
            yield texts
        finally:
            os.dup2(before, 2)
            os.close(before)
            file.seek(0)
            texts.append(file.read())


def gradients_of_a_step(name: str) -> dict[str, Tensor]:
    """Gradients and running statistics after one step on this rank's part of a global batch; the same on all ranks."""
    config = SMALL[name]
    crop_px = usual_crop_px(config)
    model = build_backbone(config, crop_px, SEED)
    backend = DDPBackend(model, SGDConfig(), "fp32", torch.device("cpu"))
    head = build_head(MarginSoftmaxConfig(margin=CosFaceMargin(scale=8, margin=0.1)), 6, DIM, SEED)
    generator = torch.Generator().manual_seed(1)
    micros = [
        MicroBatch(
            images=as_loaded(
                torch.randint(0, 256, (LOCAL_BATCH, 3, crop_px, crop_px), generator=generator, dtype=torch.uint8)
            ),
            labels=torch.randint(0, 6, (LOCAL_BATCH,), generator=generator),
            sample_ids=torch.arange(LOCAL_BATCH) + LOCAL_BATCH * number,
            valid=torch.ones(LOCAL_BATCH, dtype=torch.bool),
            position=LOCAL_BATCH * number,
            is_filler=False,
        )
        for number in range(NUM_MICROS)
    ]
    share = NUM_MICROS // dist.world_size()
    own = micros[dist.rank() * share : (dist.rank() + 1) * share]
    num_valid = torch.full((share,), float(LOCAL_BATCH * dist.world_size()))
    statistics = RunningStatistics(model)
    step = GradientPass(backend, statistics, head, None, SEED)
    step.backward(StepBatch(0, own, NUM_MICROS, 0, 0.0, []), num_valid, 0, 0.0)
    statistics.finish_step(NUM_MICROS)
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return found | {name: b for name, b in model.named_buffers() if name.endswith(("mean", "var"))}


def all_steps() -> tuple[list[dict[str, Tensor]], str]:
    with standard_error() as texts:
        found = [gradients_of_a_step(name) for name in NAMES]
    return found, texts[0]


def test_gradients_are_those_of_one_process_and_no_layout_is_complained_of() -> None:
    # in a process with one thread, as each of two ranks has: others add up in another order
    [(expected, _)] = run_ranks(all_steps, 1, timeout_s=240)
    for found, text in run_ranks(all_steps, 2, timeout_s=240):
        assert "stride" not in text, text
        for name, ours, theirs in zip(NAMES, found, expected, strict=True):
            assert ours.keys() == theirs.keys()
            assert len(theirs) > 10
            whole = torch.cat([value.flatten() for value in theirs.values()])
            difference = torch.cat([(ours[key] - value).flatten() for key, value in theirs.items()])
            assert difference.norm() < 1e-4 * whole.norm(), name
