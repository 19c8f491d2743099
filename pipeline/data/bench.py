"""Where a data set's loading time goes: a table with a bar for each stage, and the bottleneck by name."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from pipeline.config.augment import Augmentation
from pipeline.config.decoder import CpuDecoder, DaliDecoder
from pipeline.data.loader import Loader
from pipeline.data.manifest import SplitIndex
from pipeline.data.stage_times import ASSEMBLE, AUGMENT, CRC, DECODE, PLAN, STORE
from pipeline.data.step_plan import EpochOrder

_MEANINGS = {
    STORE: "read bytes",
    CRC: "check them",
    DECODE: "JPEG to pixels",
    AUGMENT: "operations on pixels",
    ASSEMBLE: "stack, send to the device",
    PLAN: "choose rows, draw parameters",
}
_REMEDIES = {
    STORE: "a faster store, data.cache, data.order.kind=streaming, or more data.num_threads",
    CRC: "more data.num_threads",
    DECODE: "more data.num_threads, or data.decoder.kind=dali with device=gpu",
    AUGMENT: "fewer or rarer operations in data.augment, or more data.num_threads",
    ASSEMBLE: "larger micro-batches",
    PLAN: "larger micro-batches",
}
_BAR = 20


@dataclass(frozen=True)
class BenchResult:
    """What a run of the loader cost."""

    num_samples: int
    elapsed_s: float
    first_batch_s: float
    stage_s: dict[str, float]
    """Summed over threads."""
    num_bad: int


def measure_loader(
    split: SplitIndex,
    order: EpochOrder,
    *,
    decoder: CpuDecoder | DaliDecoder,
    augment: tuple[Augmentation, ...],
    crop_px: int,
    num_steps: int,
    batch: int,
    num_threads: int,
) -> BenchResult:
    """Run the training loader on one rank for some steps; a step before them starts it up and does not count."""
    with Loader(
        split,
        seed=0,
        global_batch=batch,
        local_batch=batch,
        rank=0,
        world_size=1,
        start=0,
        stop=(num_steps + 1) * batch,
        decoder=decoder,
        augment=augment,
        device=torch.device("cpu"),
        crop_px=crop_px,
        order=order,
        num_threads=num_threads,
    ) as loader:
        began = time.perf_counter()
        batches = iter(loader)
        num_bad = len(next(batches).bad_samples)
        started = time.perf_counter()
        before = loader.stage_times
        num_bad += sum(len(step.bad_samples) for step in batches)
        elapsed_s = time.perf_counter() - started
        stage_s = {name: seconds - before[name] for name, seconds in loader.stage_times.items()}
    return BenchResult(num_steps * batch, elapsed_s, started - began, stage_s, num_bad)


def show(result: BenchResult, num_threads: int, console: Console) -> None:
    """Print the table."""
    rate = result.num_samples / result.elapsed_s
    console.print(
        f"{rate:,.0f} photos/s on {num_threads} threads ({result.num_samples:,} photos in {result.elapsed_s:.2f} s, "
        f"first batch after {result.first_batch_s:.2f} s)"
    )
    if result.num_bad:
        console.print(f"{result.num_bad:,} photos could not be used: preprocess verify names them", style="red")
    total = sum(result.stage_s.values())
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("stage")
    table.add_column("", no_wrap=True)
    table.add_column("µs a photo", justify="right")
    table.add_column("share", justify="right")
    table.add_column("", no_wrap=True)
    for name, seconds in sorted(result.stage_s.items(), key=lambda item: -item[1]):
        share = seconds / total if total else 0.0
        bar = "█" * round(_BAR * share)
        cost = f"{1e6 * seconds / result.num_samples:,.1f}"
        table.add_row(name, _MEANINGS[name], cost, f"{share:.0%}", bar)
    console.print(table)
    worst = max(result.stage_s, key=lambda name: result.stage_s[name])
    console.print(f"most time goes to {worst} ({_MEANINGS[worst]}); what would help: {_REMEDIES[worst]}")
