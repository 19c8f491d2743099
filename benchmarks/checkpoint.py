"""How long training waits for a checkpoint: copied and written beside it, against written while it waits.

    python benchmarks/checkpoint.py                       # an IResNet-50 with 100,000 classes, and a training run

Two parts. First the state of one rank (IResNet-50, 100,000 class centres of 512 numbers, momentum of both), saved five
times each way in turns: by `pipeline.checkpoint_writer.save`, which the caller waits for, and by `CheckpointWriter`,
which it does not. Then the demo's recipe on two ranks with a save every 100 steps: what share of the time it waited.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import torch

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


def both_ways(folder: Path, num_classes: int, turns: int) -> dict[str, list[float]]:
    """Seconds that the caller waits, by way."""
    model = build_backbone(IResNetConfig(depth=50), 112, seed=0)
    tensors: dict[str, torch.Tensor] = dict(model.state_dict())
    tensors |= {f"{name}/momentum": torch.randn_like(tensor.float()) for name, tensor in model.named_parameters()}
    tensors |= {name: torch.randn(num_classes, 512) for name in ("centres", "centres/momentum")}
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    print(f"state of {num_bytes / 2**20:,.0f} MiB")
    waited: dict[str, list[float]] = {"written while training waits": [], "written beside it": []}
    with CheckpointWriter(folder / "beside", 1, 1, print, lambda: None) as writer:
        for turn in range(turns + 1):
            began = time.monotonic()
            save(folder / "blocking", tensors, describe(turn), keep=1)
            blocking_s = time.monotonic() - began
            beside_s = writer.save(tensors, describe(turn))
            writer.wait()  # the next blocking save is to have the disk for itself
            if turn:  # the first one takes the memory for the copies
                waited["written while training waits"].append(blocking_s)
                waited["written beside it"].append(beside_s)
    return waited


def in_training(output: Path, data: Path) -> dict[str, float]:
    """Of a run with many saves: seconds between its first and last record, and those that it waited."""
    num_photos = json.loads((data / "dataset.json").read_text())["splits"]["train"]["num_samples"]
    every_epochs = STEPS_BETWEEN_SAVES * 128 / num_photos
    overrides = [f"output={output}", f"data.path={data}", f"checkpoint.every_epochs={every_epochs}"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = [str(REPOSITORY / "launch" / "train.py"), "--config", str(REPOSITORY / "configs" / "demo_cpu.yaml")]
    subprocess.run([*torchrun, *script, *overrides], check=True)
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    steps = [0, *(record["step"] for record in records)]
    num_steps = [step - before for before, step in pairwise(steps)]
    wall_s = sum(record["step_s"] * count for record, count in zip(records, num_steps, strict=True))
    return {"wall_s": wall_s, "waited_s": sum(record["save_wait_s"] for record in records)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-classes", type=int, default=100_000)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--data", type=Path, default=REPOSITORY / "build" / "demo" / "data")
    parser.add_argument("--out", type=Path, default=Path("build/checkpoint-benchmark"))
    arguments = parser.parse_args()
    shutil.rmtree(arguments.out, ignore_errors=True)
    waited = both_ways(arguments.out, arguments.num_classes, arguments.turns)
    for way, seconds in waited.items():
        print(f"{way:<30} {statistics.median(seconds):7.3f} s  ({min(seconds):.3f} to {max(seconds):.3f})")
    medians = [statistics.median(seconds) for seconds in waited.values()]
    print(f"training waits {medians[0] / medians[1]:.1f} times shorter")
    trained = in_training(arguments.out / "run", arguments.data)
    share = trained["waited_s"] / trained["wall_s"]
    print(f"a save every {STEPS_BETWEEN_SAVES} steps:", end=" ")
    print(f"waited {trained['waited_s']:.3f} of {trained['wall_s']:.1f} s, {share:.2%}")
    (arguments.out / "result.json").write_text(json.dumps({"waited_s": waited, "training": trained}, indent=1))


if __name__ == "__main__":
    main()
