"""`preprocess verify`."""

from __future__ import annotations

from pathlib import Path

import typer


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
    from preprocess.progress import show_progress
    from preprocess.storage import one_line_errors

    console = Console()
    with one_line_errors(out):
        is_sound = run.verify(out, console)
        if coverage:
            from pipeline.data.coverage import check_split, show
            from pipeline.data.manifest import open_dataset

            dataset = open_dataset(out)
            for name in (name for name, split in dataset.info.splits.items() if split.num_samples):
                split = dataset.split(name)
                with show_progress(console, f"covering {name}", len(split)) as advance:
                    found = check_split(
                        split, local_batch=local_batch, ranks=ranks, workers=workers, seed=seed, advance=advance
                    )
                show(found, f"{out} ({name})", console)
                is_sound &= found.is_sound
    if not is_sound:
        raise typer.Exit(1)
