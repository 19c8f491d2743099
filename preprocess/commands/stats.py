"""`preprocess stats`."""

from __future__ import annotations

from pathlib import Path

import typer


def stats(
    out: Path = typer.Argument(..., metavar="OUT", help="A finished data set."),
    html: Path | None = typer.Option(None, help="Also write a page with histograms and sheets of crops."),
) -> None:
    """Show counts, photos an identity, rejects by reason, sizes, pose, sharpness and scores.

    The page adds the brightness of a sample of crops and sheets of crops; it needs no other file.

    [bold]Examples[/bold]

        preprocess stats data

        preprocess stats data --html stats.html
    """
    from rich.console import Console

    from pipeline.atomic_write import write_atomically
    from preprocess.stats import count_rows, print_stats, read_contents
    from preprocess.storage import one_line_errors

    with one_line_errors(out):
        contents = read_contents(out)
        print_stats(contents, Console())
    if html is not None:
        from preprocess.stats_page import render_stats

        with one_line_errors(html):
            write_atomically(html, render_stats(out, contents, count_rows(contents)))
        typer.echo(f"page: {html}")
