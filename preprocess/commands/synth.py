"""`preprocess synth`."""

from __future__ import annotations

from pathlib import Path

import typer

from pipeline.config.errors import UserError
from preprocess.commands.interrupt import goes_on_after_ctrl_c, interrupted_after_imports


def synth(
    out: Path = typer.Argument(..., metavar="OUT", help="Folder for the photos; made when missing."),
    identities: int = typer.Option(100, help="Number of people."),
    photos: int = typer.Option(20, help="Photos of each."),
    size: int = typer.Option(168, help="Width and height in pixels."),
    seed: int = typer.Option(0, help="Another seed gives other people."),
    workers: int = typer.Option(0, help="Processes; 0 for one a core."),
    quality: int = typer.Option(92, help="JPEG quality, 1 to 100."),
) -> None:
    """Render photos of synthetic people, with true boxes and landmarks in OUT/annotations.parquet.

    The same command goes on where it was interrupted; the bytes depend on seed, size and quality alone.

    [bold]Examples[/bold]

        preprocess synth build/photos --identities 100 --photos 20

        preprocess synth build/big --identities 10000 --photos 50 --seed 7 --workers 16

        preprocess shard build/photos/annotations.parquet build/data
    """
    import os

    with interrupted_after_imports():
        from preprocess.synthetic.command import run_synth

    if workers < 0:
        raise UserError("--workers", str(workers), "a number of processes, or 0 for one a core")
    with goes_on_after_ctrl_c():
        run_synth(out, identities, photos, seed, size, quality, workers or os.cpu_count() or 1)
