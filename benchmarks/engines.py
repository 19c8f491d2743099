"""Train the demo's recipe under each engine and draw the losses over one another.

    make demo                                  # or any data set: --data DIR
    python benchmarks/engines.py

Four runs of the same recipe at a hundredth of its learning rate: DDP and DeepSpeed with ZeRO 1 and 2 on two ranks, and
DDP in one process. The last is the yardstick: it differs from the first in nothing but the order in which float32
numbers are added up. Writes `engines.json` and the picture that docs/engines.md shows. A run that is finished is not
repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

REPOSITORY = Path(__file__).parents[1]
RECIPE = REPOSITORY / "configs" / "demo_cpu.yaml"
RUNS: dict[str, tuple[int, list[str]]] = {
    "DDP": (2, ["engine.kind=ddp"]),
    "DeepSpeed, ZeRO 1": (2, ["engine.kind=deepspeed", "engine.stage=1"]),
    "DeepSpeed, ZeRO 2": (2, ["engine.kind=deepspeed", "engine.stage=2"]),
    "DDP, one process": (1, ["engine.kind=ddp"]),
}
STYLES = {"DDP": ("C0", "-", 4.0), "DeepSpeed, ZeRO 1": ("C1", "-", 2.0), "DeepSpeed, ZeRO 2": ("C2", "--", 1.5)}
YARDSTICK = "DDP, one process"


def train(name: str, data: Path, output: Path, epochs: float, lr: float) -> dict[int, float]:
    """Losses of a run by step."""
    ranks, overrides = RUNS[name]
    script = [str(REPOSITORY / "launch" / "train.py"), "--config", str(RECIPE), f"output={output}", f"data.path={data}"]
    script += [f"training.epochs={epochs}", f"optim.backbone.lr={lr}", f"optim.head.lr={lr}"]
    script += ["monitor.every_steps=1", "monitor.tensorboard=false", "checkpoint.every_epochs=1000", *overrides]
    launcher = [sys.executable]
    if ranks > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*launcher, *script], check=True, env=environment)
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return {record["step"]: record["loss"] for record in records}


def greatest_difference(losses: dict[int, float], than: dict[int, float], steps: int) -> float:
    """Relative, over the first steps."""
    return max(abs(losses[step] / than[step] - 1) for step in range(1, steps + 1))


def draw(curves: dict[str, dict[int, float]], path: Path) -> None:
    """The losses above, their relative distance from those of DDP below."""
    matplotlib.rcParams["svg.hashsalt"] = "facemill"  # the same file for the same numbers
    figure = Figure(figsize=(7.5, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    reference = curves["DDP"]
    for name, (colour, style, width) in STYLES.items():
        above.plot(list(curves[name]), list(curves[name].values()), style, color=colour, linewidth=width, label=name)
    for name, losses in curves.items():
        if name != "DDP":
            distance = [max(abs(losses[step] / reference[step] - 1), 1e-9) for step in reference]
            colour, style = STYLES[name][:2] if name in STYLES else ("0.6", ":")
            below.plot(list(reference), distance, style, color=colour, linewidth=1.5, label=name)
    above.set_ylabel("loss")
    below.set(xlabel="step", ylabel="relative distance from DDP", yscale="log")
    for axes in (above, below):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None, "Creator": None})


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("build/demo/data"))
    parser.add_argument("--output", type=Path, default=Path("build/engines"))
    parser.add_argument("--picture", type=Path, default=REPOSITORY / "docs" / "images" / "engines.svg")
    parser.add_argument("--epochs", type=float, default=3.0)
    # at the recipe's own 0.1 a difference in the seventh digit is one of a hundredth after ten steps, whoever makes it
    parser.add_argument("--lr", type=float, default=0.001)
    options = parser.parse_args(arguments)
    curves = {
        name: train(name, options.data, options.output / str(number), options.epochs, options.lr)
        for number, name in enumerate(RUNS)
    }
    (options.output / "engines.json").write_text(json.dumps(curves, indent=1) + "\n")
    draw(curves, options.picture)
    print(f"{'greatest relative distance from DDP':<40}{'20 steps':>12}{'all steps':>12}")
    for name, losses in curves.items():
        if name != "DDP":
            values = [greatest_difference(losses, curves["DDP"], n) for n in (min(20, len(losses)), len(losses))]
            print(f"{name:<40}{values[0]:>12.1e}{values[1]:>12.1e}")


if __name__ == "__main__":
    main()
