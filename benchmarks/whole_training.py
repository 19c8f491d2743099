"""Samples a second of whole training, against its loader alone, its step alone and another number of ranks.

    make demo                                     # or any data set: --data DIR
    python benchmarks/whole_training.py
    python benchmarks/whole_training.py --device cuda --recipe recipe.yaml --data DATA --ranks 1 8

Every rank is a process with one thread, on a core of its own where it computes on a CPU: all that it does shares this
core, its loader's thread too. A turn has three parts in the same processes: the loader alone, the step alone (a few
batches that are there already), and a run of the trainer as `launch/train.py` does it, with its records but without a
checkpoint but the last; of it the windows between the first record and the last but one count, when as many batches
are ahead at the end as were at the beginning. On a CPU the limit is 1/(1/loader + 1/step), on a GPU the slower of the
two. With more ranks, the first number of ranks times as many gives the limit of scaling.

Then the bytes that a rank sends in one step are counted: torch's profiler lists the collectives with their shapes, and
rings carry them (`pipeline.engine.predict.sent_bytes`). Beside them stands the least that the layout allows. gloo
does not scatter sums but sums all; counted is what was asked of it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from figures import Figure, write
from ports import free_port

from pipeline import dist
from pipeline.config.load import load_config
from pipeline.config.schema import Config
from pipeline.data.loader import StepBatch
from pipeline.engine.memory import keep_freed_memory
from pipeline.engine.predict import Workload, least_bytes, sent_bytes
from pipeline.engine.run import RunPlan, plan_run
from pipeline.engine.stream import open_loader
from pipeline.engine.trainer import Trainer
from pipeline.progress import PROGRESS

REPOSITORY = Path(__file__).parents[1]
NUM_HELD_BATCHES = 2
ELEMENT_BYTES = {"float": 4, "double": 8, "long int": 8, "int": 4, "unsigned char": 1, "bool": 1, "c10::BFloat16": 2}
MIB = 2**20
QUIET = {"OMP_NUM_THREADS": "1", "KINETO_LOG_LEVEL": "99"}
"""Of the environment; the second, because the library under the profiler calls it an error that there is no GPU."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=REPOSITORY / "configs" / "demo_cpu.yaml")
    parser.add_argument("--data", type=Path, default=REPOSITORY / "build" / "demo" / "data")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--window", type=int, default=4, help="steps between records; a run has 2 of them and 3 steps")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures")
    arguments = parser.parse_args()
    if "RANK" in os.environ:
        answer = run_rank(arguments)
        if os.environ["RANK"] == "0":
            print(json.dumps(answer))
        return
    if not arguments.data.is_dir():
        raise SystemExit(f"{arguments.data} is missing: make demo writes it")
    cores = sorted(os.sched_getaffinity(0))
    most = torch.cuda.device_count() if arguments.device == "cuda" else len(cores)
    if max(arguments.ranks) > most:
        raise SystemExit(f"--ranks {max(arguments.ranks)}: there are {most} for ranks here")
    found = {ranks: launch(ranks, arguments.device, cores) for ranks in arguments.ranks}
    figures = [figure for ranks in arguments.ranks for figure in show(found, ranks, arguments.device)]
    for figure in figures:
        print(figure.text())
    if arguments.json:
        write(arguments.json, figures)


def launch(num_ranks: int, device: str, cores: list[int]) -> dict[str, Any]:
    """Run this command line once a rank; gives what rank 0 found."""
    group = {"WORLD_SIZE": str(num_ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = []
    for rank in range(num_ranks):
        process = subprocess.Popen(
            [sys.executable, *sys.argv],
            env={**os.environ, **group, "RANK": str(rank), "LOCAL_RANK": str(rank)} | QUIET,
            stdout=subprocess.PIPE,
            text=True,
        )
        if device == "cpu":
            os.sched_setaffinity(process.pid, {cores[rank]})  # before it has threads
        processes.append(process)
    answers = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit(f"{num_ranks} ranks: exit codes {[process.returncode for process in processes]}")
    answer: dict[str, Any] = json.loads(answers[0].splitlines()[-1])
    return answer


def run_rank(arguments: argparse.Namespace) -> dict[str, Any]:
    """Take turns on this rank. Collective on all ranks."""
    if arguments.device == "cpu":
        keep_freed_memory()
    device = dist.initialise(arguments.device)
    folder = Path(dist.all_gather_objects(tempfile.mkdtemp() if dist.rank() == 0 else "")[0])
    rates: dict[str, list[float]] = {"loader": [], "step": [], "whole": []}
    for turn in range(arguments.repeats + 1):
        plan = plan_run(configuration(arguments, folder / f"turn-{turn}"))
        PROGRESS.begin(device, step=0)
        trainer = Trainer(plan, device)
        num_steps = 2 * arguments.window
        found = {"loader": loader_rate(trainer, num_steps), "step": step_rate(trainer, num_steps)}
        found["whole"] = whole_rate(Trainer(plan, device), plan)
        if turn:  # the first one loads libraries and takes memory
            for name, rate in found.items():
                rates[name].append(rate)
    traffic = count_traffic(trainer)
    dist.barrier()
    if dist.rank() == 0:
        shutil.rmtree(folder)
    dist.shutdown()
    return {"rates": rates, "traffic": traffic}


def configuration(arguments: argparse.Namespace, output: Path) -> Config:
    """The recipe, as long as a turn is."""
    num_photos = json.loads((arguments.data / "dataset.json").read_text())["splits"]["train"]["num_samples"]
    recipe = load_config(arguments.recipe, [])
    num_steps = 2 * arguments.window + recipe.data.prefetch_steps + 1
    overrides = [f"output={output}", f"data.path={arguments.data}", f"device={arguments.device}"]
    overrides += [f"training.epochs={num_steps * recipe.training.global_batch / num_photos}"]
    overrides += [f"monitor.every_steps={arguments.window}", "checkpoint.every_epochs=1000000"]
    return load_config(arguments.recipe, overrides)


def loader_rate(trainer: Trainer, num_steps: int) -> float:
    """Samples/s of all ranks while they do nothing but load."""
    plan, batch = trainer.plan, trainer.config.training.global_batch
    with open_loader(plan, trainer.device, 0, num_steps * batch, plan.order) as loader:
        return num_steps * batch / timed(lambda: [None for _ in loader], trainer.device)


def step_rate(trainer: Trainer, num_steps: int) -> float:
    """Samples/s of all ranks while they train on batches that are there."""
    held = held_batches(trainer)
    trainer._train_step(held[0])

    def train() -> None:
        for number in range(num_steps):
            trainer._train_step(held[number % len(held)])

    return num_steps * trainer.config.training.global_batch / timed(train, trainer.device)


def whole_rate(trainer: Trainer, plan: RunPlan) -> float:
    """Samples/s of the trainer in its first windows, whole ones and all but the first step."""
    trainer.run()
    lines = (plan.config.output / "metrics.jsonl").read_text().splitlines() if dist.rank() == 0 else []
    records = [json.loads(line) for line in dist.all_gather_objects(lines)[0]]
    samples = seconds = 0.0
    for before, record in pairwise(records[:-1]):
        count = record["samples"] - before["samples"]
        samples, seconds = samples + count, seconds + count / record["samples_per_s"]
    return samples / seconds


def held_batches(trainer: Trainer) -> list[StepBatch]:
    """A few of the run's first batches."""
    plan, num_samples = trainer.plan, NUM_HELD_BATCHES * trainer.config.training.global_batch
    with open_loader(plan, trainer.device, 0, num_samples, plan.order) as loader:
        return list(loader)


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds from all ranks' start to all ranks' end. Collective."""
    dist.barrier()
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    dist.barrier()
    return time.perf_counter() - began


def count_traffic(trainer: Trainer) -> dict[str, float]:
    """Bytes that this rank sends in a step by rings: those that were counted, those of the formula, the least."""
    ranks, device = dist.world_size(), trainer.device
    if ranks == 1 or device.type != "cpu":
        return {}
    batch = held_batches(trainer)[0]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profiler:
        trainer._train_step(batch)
    counted, is_scatter = 0.0, False
    for event in sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        name, share = event.name(), (ranks - 1) / ranks
        if name == "c10d::_allgather_base_":
            counted += share * ranks * num_bytes(event, 1)
        elif name == "c10d::_reduce_scatter_base_":
            counted += share * num_bytes(event, 1)
            is_scatter = True
        elif name == "gloo:all_reduce":
            counted += 0 if is_scatter else 2 * share * num_bytes(event, 0)
            is_scatter = False
    work = workload(trainer, len(batch.micro_batches))
    return {"counted": counted, "formula": sum(sent_bytes(work).values()), "least": least_bytes(work)}


def num_bytes(event: Any, number: int) -> float:
    """Of an operation's tensor."""
    count = 1
    for size in event.shapes()[number]:
        count *= size
    return count * ELEMENT_BYTES[event.dtypes()[number]]


def workload(trainer: Trainer, num_micro_batches: int) -> Workload:
    """The run's step, for the formulas."""
    config, model = trainer.config, trainer.learner.backend.model
    return Workload(
        num_classes=trainer.plan.split.num_labels,
        num_ranks=dist.world_size(),
        local_batch=config.training.local_batch * num_micro_batches,
        num_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        num_statistics=sum(b.numel() for name, b in model.named_buffers() if "running" in name),
        embedding_dim=config.backbone.embedding_dim,
    )


def show(found: dict[int, dict[str, Any]], ranks: int, device: str) -> list[Figure]:
    """The figures of a number of ranks."""
    rates = found[ranks]["rates"]
    pairs = list(zip(rates["loader"], rates["step"], strict=True))
    if device == "cpu":
        limit = "1/(1/loader + 1/step)", [1 / (1 / loader + 1 / step) for loader, step in pairs]
        goal = "90 % of the limit"
    else:
        limit, goal = ("the slower of the two", [min(pair) for pair in pairs]), "95 % of the limit"
    place = f"{ranks} {'core' if device == 'cpu' else 'GPU'}{'s' if ranks > 1 else ''}, a rank each"
    figures = [Figure(f"whole training, {place}", "samples/s", rates["whole"], {}, limit, goal)]
    figures += [Figure(f"its {part} alone, {place}", "samples/s", rates[part]) for part in ("loader", "step")]
    first = min(found)
    if ranks > first:
        scaled = [ranks / first * rate for rate in found[first]["rates"]["whole"]]
        limit = f"{ranks / first:g} times that of {first}", scaled
        what = f"scaling of whole training, {first} to {ranks} ranks"
        figures.append(Figure(what, "samples/s", rates["whole"], {}, limit))
    if traffic := found[ranks]["traffic"]:
        mib = {name: [value / MIB] for name, value in traffic.items()}
        what = f"sent by each of {ranks} ranks in a step"
        figures.append(Figure(what, "MiB", mib["counted"], {"formula": mib["formula"]}, ("least", mib["least"])))
    return figures


if __name__ == "__main__":
    main()
