"""`preprocess verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.console import Console


def verify(
    out: Path = typer.Argument(..., metavar="OUT", help="A finished data set."),
    coverage: bool = typer.Option(
        False, "--coverage", help="Also go through an epoch as training does, and count how often each photo comes."
    ),
    ranks: int = typer.Option(2, min=1, help="Ranks of the epoch's first half; the second half has one more."),
    workers: int = typer.Option(2, min=1, help="Threads that read."),
    local_batch: int = typer.Option(64, min=1, help="Photos of a micro-batch; a rank has two of them a step."),
    seed: int = typer.Option(0, help="Of the order."),
) -> None:
    """Recompute every hash and CRC, and name the shard, key and byte of each fault.

    With --coverage, an epoch's batches are planned for all ranks with the code that training uses, a restart with
    another number of ranks and another micro-batch in the middle; each photo has to come exactly once.

    Exit code 0 when all is well, 1 when there are faults, 2 when OUT is not a finished data set.

    [bold]Examples[/bold]

        preprocess verify data

        preprocess verify data --coverage --ranks 8 --workers 4
    """
    from rich.console import Console

    from preprocess import run
    from preprocess.storage import one_line_errors

    with one_line_errors(out):
        is_sound = run.verify(out, Console())
        if coverage:
            is_sound &= _covers(out, ranks, workers, local_batch, seed, Console())
    if not is_sound:
        raise typer.Exit(1)


def _covers(out: Path, ranks: int, workers: int, local_batch: int, seed: int, console: Console) -> bool:
    """Whether an epoch of each split sees each photo once; says so."""
    from pipeline.data.coverage import check_coverage
    from pipeline.data.manifest import open_dataset
    from pipeline.data.order import PlainOrder
    from preprocess.progress import show_progress

    dataset, is_exact = open_dataset(out), True
    for name, info in dataset.info.splits.items():
        if not info.num_samples:
            continue
        split = dataset.split(name)
        micro = min(local_batch, len(split))
        global_batch = micro * max(1, min(2 * ranks, len(split) // micro))
        with show_progress(console, f"covering {name}", len(split)) as advance:
            found = check_coverage(
                split,
                PlainOrder.create(split.digest, len(split), seed),
                global_batch=global_batch,
                local_batch=micro,
                ranks=ranks,
                workers=workers,
                advance=advance,
            )
        is_exact &= found.is_exact and not found.bad_samples
        for bad in found.bad_samples:
            console.print(f"sample {bad.sample_id} of {bad.shard}: {bad.reason}, {bad.detail}", style="red")
        verdict = (
            "each exactly once" if found.is_exact else f"{found.num_missing:,} never, {found.num_repeated:,} twice"
        )
        unreadable = f", {len(found.bad_samples):,} unreadable" if found.bad_samples else ""
        console.print(
            f"{out} ({name}): an epoch of {found.num_samples:,} photos in batches of {global_batch}, {ranks} then "
            f"{ranks + 1} ranks: {verdict}{unreadable}",
            soft_wrap=True,
        )
    return is_exact
