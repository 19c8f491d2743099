"""`preprocess stats`."""

from __future__ import annotations

from pathlib import Path

import typer


def stats(out: Path = typer.Argument(..., metavar="OUT", help="A finished data set.")) -> None:
    """Show counts, photos an identity, rejects by reason, sizes, pose, sharpness and scores.

    [bold]Examples[/bold]

        preprocess stats data
    """
    from rich.console import Console

    from preprocess.stats import print_stats
    from preprocess.storage import one_line_errors

    with one_line_errors(out):
        print_stats(out, Console())
