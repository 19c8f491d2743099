"""Estimate a run, then run it on random crops, and print both.

    OMP_NUM_THREADS=1 python benchmarks/estimate.py --ranks 2 --classes 200000 --depth 18 --width 0.25
    OMP_NUM_THREADS=1 python benchmarks/estimate.py --ranks 1 --classes 100000 --global-batch 64

Each rank is a process that takes training steps as `launch/train.py` does, without a data set: DDP, micro-batches,
running statistics, the head, both optimizers. Memory is the greatest resident memory during the steps above what the
process held before the model was built; time is the median of the steps after the first. Processor time tells more than
time where other programs share the processors.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

import torch
from ports import free_port

from pipeline import dist
from pipeline.config.load import validate_config
from pipeline.config.schema import Config
from pipeline.data.loader import MicroBatch, StepBatch
from pipeline.engine.batch_norm import RunningStatistics
from pipeline.engine.ddp import DDPBackend
from pipeline.engine.estimate import describe, estimate
from pipeline.engine.gradients import GradientPass
from pipeline.engine.head_optim import HeadOptimizer
from pipeline.engine.measure_step import peak_resident_bytes, reset_peak, resident_bytes
from pipeline.engine.memory import keep_freed_memory
from pipeline.model.backbones import build_backbone
from pipeline.model.head import build_head

NUM_STEPS = 5


def main() -> None:
    """Parse the command line, estimate, measure, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--classes", type=int, default=100_000)
    parser.add_argument("--global-batch", type=int, default=64)
    parser.add_argument("--local-batch", type=int, default=32)
    parser.add_argument("--depth", type=int, default=18)
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--crop-px", type=int, default=112)
    parser.add_argument("--head", default="{}", help="JSON over the head's keys")
    arguments = parser.parse_args()
    if "RANK" in os.environ:
        print(json.dumps(take_steps(configuration(arguments), arguments.classes, arguments.crop_px)))
        return
    predicted = estimate(configuration(arguments), arguments.classes, arguments.ranks, arguments.crop_px)
    print(describe(predicted))
    measured = launch(arguments.ranks)
    for name, ours, theirs in (
        ("memory, MiB", predicted.resident_peak_bytes / 2**20, measured["bytes"] / 2**20),
        ("time of a step, s", predicted.step_s, measured["seconds"]),
        ("processor time, s", predicted.processor_s, measured["processor_seconds"]),
    ):
        print(f"{name:<20} predicted {ours:10,.3f}   measured {theirs:10,.3f}   {ours / theirs - 1:+.1%}")


def configuration(arguments: argparse.Namespace) -> Config:
    """A run that writes nothing and reads nothing."""
    backbone = {"kind": "iresnet", "depth": arguments.depth, "width": arguments.width, "embedding_dim": arguments.dim}
    batches = {"epochs": 1, "global_batch": arguments.global_batch, "local_batch": arguments.local_batch}
    head = json.loads(arguments.head)
    return validate_config(
        {"output": "unused", "data": {"path": "unused"}, "backbone": backbone, "head": head, "training": batches}
    )


def launch(num_ranks: int) -> dict[str, float]:
    """Run this command line once a rank; gives the greatest memory and the time of the slowest rank."""
    group = {"WORLD_SIZE": str(num_ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = [
        subprocess.Popen(
            [sys.executable, *sys.argv],
            env={**os.environ, **group, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(num_ranks)
    ]
    answers = [json.loads(process.communicate()[0]) for process in processes]
    return {key: max(answer[key] for answer in answers) for key in answers[0]}


def take_steps(config: Config, num_classes: int, crop_px: int) -> dict[str, float]:
    """Train on random crops on this rank."""
    keep_freed_memory()
    dist.initialise("cpu")
    torch.nn.functional.conv2d(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 3, 3))
    base = resident_bytes()
    training = config.training
    model = build_backbone(config.backbone, crop_px, config.seed)
    backend = DDPBackend(model, config.optim.backbone, training.precision, torch.device("cpu"))
    norms = RunningStatistics(model)
    head = build_head(config.head, num_classes, config.backbone.embedding_dim, config.seed)
    head_optimizer = HeadOptimizer(config.optim.head, head)
    gradient_pass = GradientPass(backend, norms, head, None, config.seed)
    backend.prime_optimizer()
    num_micro_batches = -(-training.global_batch // (training.local_batch * dist.world_size()))
    generator = torch.Generator().manual_seed(dist.rank())
    batch = StepBatch(0, [], num_micro_batches * dist.world_size(), 0, 0.0, [])
    for number in range(num_micro_batches):
        size = (training.local_batch, 3, crop_px, crop_px)
        batch.micro_batches.append(
            MicroBatch(
                images=torch.randint(0, 256, size, dtype=torch.uint8, generator=generator),
                labels=torch.randint(0, num_classes, (training.local_batch,), generator=generator),
                sample_ids=torch.arange(training.local_batch),
                valid=torch.ones(training.local_batch, dtype=torch.bool),
                position=number * training.local_batch,
                is_filler=False,
            )
        )
    num_valid = torch.full((num_micro_batches,), float(training.local_batch * dist.world_size()))
    reset_peak()
    seconds, processor_seconds = [], []
    for step in range(NUM_STEPS):
        dist.barrier()
        began, processor_began = time.perf_counter(), time.process_time()
        gradient_pass.backward(batch, num_valid, step, 0.0)
        lengths = backend.gradient_norm(), head_optimizer.gradient_norm()
        # a learning rate of 0: random labels would drive the weights to infinity
        backend.step(0.0, lengths[0], config.optim.clip_backbone_norm)
        head_optimizer.step(0.0, lengths[1], config.optim.clip_head_norm)
        seconds.append(time.perf_counter() - began)
        processor_seconds.append(time.process_time() - processor_began)
    peak = peak_resident_bytes() - base
    dist.shutdown()
    return {
        "bytes": float(peak),
        "seconds": statistics.median(seconds[1:]),
        "processor_seconds": statistics.median(processor_seconds[1:]),
    }


if __name__ == "__main__":
    main()
