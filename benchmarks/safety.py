"""What it costs a run to be safe: checked bytes, finite numbers, records and checkpoints together.

    make demo                                     # or any data set: --data DIR
    python benchmarks/safety.py

The trainer runs the demo's recipe with half its batch, in one process of one thread, in turns with and without

- the CRC-32 of every photo that is read, and the check that it has as many bytes as it should,
- the checks that embeddings, loss and gradients are finite, and that the loss does not jump,
- records, TensorBoard events, the times by stage and rank, the count of seen classes, the watchdog,
- a checkpoint in the middle of the turn.

Without records and checkpoints means `monitor.every_steps`, `monitor.tensorboard` and `checkpoint.every_epochs`; no
configuration switches the other things off, so this benchmark puts functions that do nothing in their place. One thing
cannot be taken out without changing the trainer: that loss and norms are added up and looked at (`math.isfinite`), on a
CPU a matter of microseconds. A time is from the beginning of the second step to that of the last, so the checkpoint at
the end of a run does not count. Processor time is that of all threads, and tells more where others use the cores. A run
saves far less often than once a turn: here the cost of a save is spread over few steps, so turns without it, but with
all else, stand beside the others.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from figures import Figure, write

from pipeline.config.load import load_config
from pipeline.config.schema import Config
from pipeline.data.reader import SampleReads
from pipeline.engine import trainer
from pipeline.engine.divergence import SpikeDetector
from pipeline.engine.gradients import GradientPass
from pipeline.engine.run import plan_run
from pipeline.engine.seen_classes import SeenClasses
from pipeline.engine.slow_ranks import SlowRanks
from pipeline.engine.window import Window
from pipeline.progress import Progress

REPOSITORY = Path(__file__).parents[1]
RECIPE = REPOSITORY / "configs" / "demo_cpu.yaml"
NEVER = 1_000_000
WARM_UP_STEPS = 4
"""Of the first turn, which loads libraries and takes memory."""
NAMES = ("with", "without checkpoints", "without")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=REPOSITORY / "build" / "demo" / "data")
    parser.add_argument("--steps", type=int, default=24, help="of a turn")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures")
    arguments = parser.parse_args()
    if not arguments.data.is_dir():
        raise SystemExit(f"{arguments.data} is missing: make demo writes it")
    torch.set_num_threads(1)
    seconds: dict[str, list[float]] = {name: [] for name in NAMES}
    processor: dict[str, list[float]] = {name: [] for name in NAMES}
    folder = Path(tempfile.mkdtemp())
    try:
        for turn in range(arguments.repeats + 1):
            num_steps = arguments.steps if turn else WARM_UP_STEPS
            # whoever comes second finds caches as the first left them: they swap places
            for name in NAMES if turn % 2 else reversed(NAMES):
                output = folder / f"{name}-{turn}"
                wall_s, processor_s = step_s(configuration(arguments, output, name, num_steps), name)
                if turn:
                    seconds[name].append(wall_s)
                    processor[name].append(processor_s)
    finally:
        shutil.rmtree(folder)
    figures = [
        figure("a training step", seconds),
        figure("its processor time", processor),
    ]
    for found in figures:
        print(found.text())
    if arguments.json:
        write(arguments.json, figures)


def figure(what: str, times: dict[str, list[float]]) -> Figure:
    """With its cost in words."""
    cost = statistics.median(times["with"]) / statistics.median(times["without"]) - 1
    return Figure(
        f"{what}: safety costs {cost:+.1%}",
        "s",
        times["with"],
        {"all but the checkpoint": times["without checkpoints"]},
        ("without any of it", times["without"]),
        goal="3 % at most",
    )


def configuration(arguments: argparse.Namespace, output: Path, name: str, num_steps: int) -> Config:
    """The demo's recipe for one turn."""
    num_photos = json.loads((arguments.data / "dataset.json").read_text())["splits"]["train"]["num_samples"]
    epochs = num_steps * arguments.batch / num_photos
    overrides = [f"output={output}", f"data.path={arguments.data}", f"training.epochs={epochs}"]
    overrides += [f"training.global_batch={arguments.batch}", f"training.local_batch={arguments.batch}"]
    overrides += [f"checkpoint.every_epochs={epochs / 2 if name == 'with' else NEVER}"]
    if name == "without":
        overrides += [f"monitor.every_steps={NEVER}", "monitor.tensorboard=false"]
    return load_config(RECIPE, overrides)


def step_s(config: Config, name: str) -> tuple[float, float]:
    """Seconds and processor seconds of a step of a run."""
    moments: list[tuple[float, float]] = []
    train_step = trainer.Trainer._train_step

    def stamped(self: Any, batch: Any) -> Any:
        moments.append((time.perf_counter(), time.process_time()))
        return train_step(self, batch)

    with ExitStack() as stack:
        stack.enter_context(patch.object(trainer.Trainer, "_train_step", stamped))
        if name == "without":
            stack.enter_context(nothing_is_checked())
        trainer.train(plan_run(config))
    (began, processor_began), (ended, processor_ended) = moments[1], moments[-1]
    num_steps = len(moments) - 2
    return (ended - began) / num_steps, (processor_ended - processor_began) / num_steps


@contextmanager
def nothing_is_checked() -> Iterator[None]:
    """Functions that do nothing in place of all that a configuration does not switch off."""
    replacements: list[tuple[Any, str, Any]] = [
        (SampleReads, "_fault", lambda self, slot, content: None),
        (GradientPass, "_all_finite", lambda self, embedded: True),
        (SpikeDetector, "is_spike", lambda self, loss: False),
        (SeenClasses, "add", lambda self, batch, epoch: None),
        (SlowRanks, "look", lambda self, cost: []),
        (Window, "add", lambda self, wait_s, samples: None),
        (Progress, "enter", lambda self, stage: None),
        (Progress, "during", lambda self, stage: nullcontext()),
        (Progress, "end_step", lambda self, step: None),
        (trainer, "Watchdog", lambda output, config: nullcontext()),
    ]
    with ExitStack() as stack:
        for owner, attribute, value in replacements:
            stack.enter_context(patch.object(owner, attribute, value))
        yield


if __name__ == "__main__":
    main()
