"""How long training waits for a checkpoint: copied and written beside it, against written while it waits.

    python benchmarks/checkpoint.py                       # an IResNet-50 with 100,000 classes, and a training run

Two parts. First the state of one rank (IResNet-50, 100,000 class centres of 512 numbers, momentum of both), saved five
times each way in turns: by `pipeline.checkpoint_writer.save`, which the caller waits for, and by `CheckpointWriter`,
which it does not. Then the demo's recipe on two ranks with a save every 100 steps: its time, and without the waiting.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import torch
from figures import Figure, write

from pipeline import checkpoint
from pipeline.checkpoint_writer import CheckpointWriter, save
from pipeline.config.backbones import IResNetConfig
from pipeline.model.backbones import build_backbone

REPOSITORY = Path(__file__).parents[1]
STEPS_BETWEEN_SAVES = 100


def describe(step: int) -> checkpoint.CheckpointInfo:
    return checkpoint.CheckpointInfo(
        step=step,
        samples=step,
        num_bad_samples=0,
        world_size=1,
        num_classes=1,
        label_map_sha256="",
        split="train",
        config={},
        dataset={},
        versions={},
    )


def both_ways(folder: Path, num_classes: int, turns: int) -> Figure:
    """Seconds that the caller waits."""
    model = build_backbone(IResNetConfig(depth=50), 112, seed=0)
    tensors: dict[str, torch.Tensor] = dict(model.state_dict())
    tensors |= {f"{name}/momentum": torch.randn_like(tensor.float()) for name, tensor in model.named_parameters()}
    tensors |= {name: torch.randn(num_classes, 512) for name in ("centres", "centres/momentum")}
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    while_waiting, beside = [], []
    with CheckpointWriter(folder / "beside", 1, 1, print, lambda: None) as writer:
        for turn in range(turns + 1):
            began = time.monotonic()
            save(folder / "blocking", tensors, describe(turn), keep=1)
            blocking_s = time.monotonic() - began
            beside_s = writer.save(tensors, describe(turn))
            writer.wait()  # the next blocking save is to have the disk for itself
            if turn:  # the first one takes the memory for the copies
                while_waiting.append(blocking_s)
                beside.append(beside_s)
    what = f"waiting for a checkpoint of {num_bytes / 2**20:,.0f} MiB"
    return Figure(what, "s", beside, {"written while training waits": while_waiting})


def in_training(output: Path, data: Path, num_epochs: int) -> Figure:
    """A run with many saves, against the time that it did not wait for them."""
    num_photos = json.loads((data / "dataset.json").read_text())["splits"]["train"]["num_samples"]
    every_epochs = STEPS_BETWEEN_SAVES * 128 / num_photos
    overrides = [f"output={output}", f"data.path={data}", f"training.epochs={num_epochs}"]
    overrides.append(f"checkpoint.every_epochs={every_epochs}")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = [str(REPOSITORY / "launch" / "train.py"), "--config", str(REPOSITORY / "configs" / "demo_cpu.yaml")]
    subprocess.run([*torchrun, *script, *overrides], check=True)
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    steps = [0, *(record["step"] for record in records)]
    num_steps = [step - before for before, step in pairwise(steps)]
    wall_s = sum(record["step_s"] * count for record, count in zip(records, num_steps, strict=True))
    waited_s = sum(record["save_wait_s"] for record in records)
    what = f"the demo's training for {num_epochs} epochs, a save every {STEPS_BETWEEN_SAVES} steps"
    return Figure(what, "s", [wall_s], limit=("without the waiting", [wall_s - waited_s]), goal="95 % of the limit")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-classes", type=int, default=100_000)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--data", type=Path, default=REPOSITORY / "build" / "demo" / "data")
    parser.add_argument("--epochs", type=int, default=12, help="of the training run")
    parser.add_argument("--out", type=Path, default=Path("build/checkpoint-benchmark"))
    parser.add_argument("--json", type=Path, help="write the figures")
    arguments = parser.parse_args()
    shutil.rmtree(arguments.out, ignore_errors=True)
    figures = [both_ways(arguments.out, arguments.num_classes, arguments.turns)]
    figures.append(in_training(arguments.out / "run", arguments.data, arguments.epochs))
    print("\n".join(figure.text() for figure in figures))
    if arguments.json:
        write(arguments.json, figures)


if __name__ == "__main__":
    main()
