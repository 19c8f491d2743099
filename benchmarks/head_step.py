"""A full step of the head, forward, backward and optimizer, against Partial FC with materialised logits.

    python benchmarks/head_step.py      # 100k classes, batches 256 and 1,024, rates 1 and 0.1
    python benchmarks/head_step.py --classes 1000000 --batch 256 --rate 1 --repeats 5 --json head.json

Ranks are gloo processes with one thread each. Ours and the peers take turns in the same processes; measured are the
time of a step and the peak of memory beyond parameters and optimizer state. The limit of the time is that of the matrix
products alone, measured in the same processes over as many rows: three, though ours forms logits again where it did
not keep them, which is a fourth.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from figures import Figure, write
from partial_fc_peers import Peer
from ranks import run_on_ranks
from torch import Tensor
from torch.nn import functional

from pipeline import dist
from pipeline.config.heads import MarginSoftmaxConfig
from pipeline.config.margins import ArcFaceMargin
from pipeline.config.optim import SGDConfig
from pipeline.engine.head_optim import HeadOptimizer
from pipeline.engine.memory import keep_freed_memory
from pipeline.model.block_size import block_rows
from pipeline.model.head import build_head
from pipeline.model.partial_fc import initial_centres

DIM = 512
SCALE, MARGIN = 64.0, 0.5
LR, MOMENTUM, WEIGHT_DECAY = 0.1, 0.9, 5e-4
TIME_GOALS = {
    1.0: "naive: 2 times at batch 256, 3 times at 1,024; 80 % of the limit",
    0.1: "naive: 1.2 times",
}
MEMORY_GOALS = {1.0: "naive: 3 times"}
"""By sample rate, for 100,000 classes on two ranks."""
Step = Callable[[int], float]


def main() -> None:
    """Parse the command line, start the ranks, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=100_000)
    parser.add_argument("--batch", type=int, nargs="+", default=[256, 1024], help="global batch")
    parser.add_argument("--rate", type=float, nargs="+", default=[1.0, 0.1], help="sample rate")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--curve", type=int, metavar="STEPS", help="compare losses with a dense float64 head instead")
    parser.add_argument("--json", type=Path, help="write the figures")
    arguments = parser.parse_args()
    if arguments.curve and arguments.json:
        parser.error("--curve prints a difference: it has no figures for --json")
    figures = run_on_ranks(run_rank, arguments.ranks, arguments)
    if arguments.json:
        write(arguments.json, figures)


def run_rank(results: Any, arguments: argparse.Namespace) -> None:
    """Measure everything on one rank; rank 0 prints."""
    torch.set_num_threads(1)
    keep_freed_memory()
    dist.initialise("cpu")
    figures: list[Figure] = []
    if arguments.curve:
        curve(arguments.classes, arguments.batch[0], arguments.curve)
    for batch in [] if arguments.curve else arguments.batch:
        for rate in arguments.rate:
            found = compare(arguments, batch, rate)
            if dist.rank() == 0:
                print("\n".join(figure.text() for figure in found), flush=True)
            figures += found
    if dist.rank() == 0:
        results.put(figures)
    dist.shutdown()


def compare(arguments: argparse.Namespace, batch: int, rate: float) -> list[Figure]:
    """Take turns, several times; gives time, beside the products alone, and memory."""
    makers = {
        "ours": lambda: ours(arguments.classes, batch, rate),
        "Partial FC, naive": lambda: peer(arguments.classes, batch, rate, in_place=False),
        "Partial FC, in place": lambda: peer(arguments.classes, batch, rate, in_place=True),
    }
    steps: dict[str, Step] = {}
    times: dict[str, list[float]] = {name: [] for name in makers}
    memory: dict[str, list[float]] = {}
    products: list[float] = []
    product_times(arguments.classes, batch, rate, arguments.ranks)  # what libraries take once is nobody's
    for name, make in makers.items():
        step = steps[name] = make()
        memory[name] = [extra_memory_mib(lambda step=step: [step(0), step(1)])]
    for number in range(arguments.repeats):
        for name, step in steps.items():
            times[name].append(timed(lambda step=step, number=number: step(2 + number)))
        products.append(sum(product_times(arguments.classes, batch, rate, arguments.ranks)))
    what = f"head, {arguments.classes:,} classes, batch {batch:,}, rate {rate:g}, {arguments.ranks} ranks"
    return [
        Figure(
            f"{what}: a step",
            "s",
            times.pop("ours"),
            times,
            ("matrix products alone", products),
            TIME_GOALS.get(rate, ""),
        ),
        Figure(f"{what}: extra memory", "MiB", memory.pop("ours"), memory, goal=MEMORY_GOALS.get(rate, "")),
    ]


def ours(num_classes: int, batch: int, rate: float) -> Step:
    """Our head, with the trainer's optimizer."""
    sampling = {} if rate == 1 else {"sample_rate": rate}
    config = MarginSoftmaxConfig(margin=ArcFaceMargin(scale=SCALE, margin=MARGIN), **sampling)
    head = build_head(config, num_classes, DIM, seed=0)
    optimizer = HeadOptimizer(SGDConfig(lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY), head)

    def step(number: int) -> float:
        embeddings, labels = local_batch(num_classes, batch, number)
        valid = torch.ones(len(labels), dtype=torch.bool)
        head.begin_step(labels, valid, number, 0.0)
        loss = head(embeddings, labels, labels, valid, number).loss
        loss.backward()
        optimizer.step(LR, torch.zeros(()), None)
        return loss.item()

    return step


def peer(num_classes: int, batch: int, rate: float, in_place: bool) -> Step:
    """The published algorithm."""
    module = Peer(num_classes, DIM, SCALE, MARGIN, 0, rate, in_place)

    def step(number: int) -> float:
        embeddings, labels = local_batch(num_classes, batch, number)
        return float(module.step(embeddings, labels, LR, MOMENTUM, WEIGHT_DECAY))

    return step


def local_batch(num_classes: int, batch: int, number: int) -> tuple[Tensor, Tensor]:
    """This rank's part of a global batch that depends on the step alone."""
    embeddings, labels = global_batch(num_classes, batch, number)
    local = batch // dist.world_size()
    own = slice(dist.rank() * local, (dist.rank() + 1) * local)
    return embeddings[own].clone().requires_grad_(), labels[own]


def global_batch(num_classes: int, batch: int, number: int) -> tuple[Tensor, Tensor]:
    """Embeddings and labels of all ranks."""
    generator = torch.Generator().manual_seed(number)
    return torch.randn(batch, DIM, generator=generator), torch.arange(batch) * 97 % num_classes


def timed(fn: Callable[[], object]) -> float:
    """Seconds, from all ranks' start to all ranks' end."""
    dist.barrier()
    started = time.perf_counter()
    fn()
    dist.barrier()
    return time.perf_counter() - started


def extra_memory_mib(fn: Callable[[], object]) -> float:
    """Peak growth of this process while `fn` runs."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what others left free would hide what `fn` takes
    Path("/proc/self/clear_refs").write_text("5")  # the kernel's peak starts anew
    before = _status_kib("VmRSS")
    fn()
    return (_status_kib("VmHWM") - before) / 1024


def product_times(num_classes: int, batch: int, rate: float, ranks: int) -> tuple[float, float]:
    """Seconds of the products alone, on all ranks at the same time: to form the logits, and to carry gradients back.

    Over as many rows as a rank has, in memory, in blocks as large as ours; outputs are there before.
    """
    rows = max(1, int(rate * num_classes) // ranks)
    queries, centres, gradient = torch.randn(batch, DIM), torch.randn(rows, DIM), torch.zeros(rows, DIM)
    block_size = block_rows(batch + DIM, queries, None)
    blocks = [slice(start, min(start + block_size, rows)) for start in range(0, rows, block_size)]
    logits, total = torch.randn(batch, block_size), torch.zeros(batch, DIM)

    def form() -> None:
        for block in blocks:
            torch.mm(queries, centres[block].t(), out=logits[:, : block.stop - block.start])

    def carry_back() -> None:
        for block in blocks:
            part = logits[:, : block.stop - block.start]
            total.addmm_(part, centres[block])
            torch.mm(part.t(), queries, out=gradient[block])

    return timed(form), timed(carry_back)


def curve(num_classes: int, batch: int, num_steps: int) -> None:
    """Print how our head's losses differ from a dense float64 one's from the same start; embeddings are given."""
    losses = []
    step = ours(num_classes, batch, 1.0)
    dense = None
    if dist.rank() == 0:
        centres = torch.nn.Parameter(initial_centres(0, 0, num_classes, DIM).double())
        dense = torch.optim.SGD([centres], lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    for number in range(num_steps):
        # few batches, again and again: the centres learn them and the loss falls
        loss = step(number % 4)
        if dense is not None:
            losses.append((loss, dense_step(dense, centres, batch, number % 4)))
            if number % 10 == 9:
                print(f"step {number + 1}: ours {losses[-1][0]:.6f}, dense float64 {losses[-1][1]:.6f}", flush=True)
        dist.barrier()
    if dense is not None:
        worst = max(abs(one - other) / other for one, other in losses)
        print(f"greatest relative difference over {num_steps} steps: {worst:.1e}")


def dense_step(optimizer: torch.optim.SGD, centres: Tensor, batch: int, number: int) -> float:
    """Forward, backward and SGD of a head in one process that lays out all logits, in float64."""
    embeddings, labels = global_batch(len(centres), batch, number)
    cosine = functional.linear(functional.normalize(embeddings.double()), functional.normalize(centres))
    own = torch.arange(batch), labels
    logits = cosine.index_put(own, torch.cos(cosine[own].acos() + MARGIN)) * SCALE
    loss = functional.cross_entropy(logits, labels)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def _status_kib(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise AssertionError(f"no {field} in /proc/self/status")


if __name__ == "__main__":
    main()
