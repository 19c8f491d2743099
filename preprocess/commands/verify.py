"""`preprocess verify`."""

from __future__ import annotations

from pathlib import Path

import typer


def verify(out: Path = typer.Argument(..., metavar="OUT", help="A finished data set.")) -> None:
    """Recompute every hash and CRC, and name the shard, key and byte of each fault.

    Exit code 0 when all is well, 1 when there are faults, 2 when OUT is not a finished data set.

    [bold]Examples[/bold]

        preprocess verify data
    """
    from rich.console import Console

    from preprocess import run
    from preprocess.storage import one_line_errors

    with one_line_errors(out):
        is_sound = run.verify(out, Console())
    if not is_sound:
        raise typer.Exit(1)
