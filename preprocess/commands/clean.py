"""`preprocess clean`."""

from __future__ import annotations

from pathlib import Path

import typer


def clean(
    data: Path = typer.Argument(..., metavar="DATA", help="A finished data set; it is only read."),
    report: Path = typer.Argument(..., metavar="REPORT", help="Folder for verdicts.parquet and doubtful.html."),
    embeddings: Path | None = typer.Option(
        None, help="Parquet with key and embedding of its photos: python launch/embed.py writes it."
    ),
    against: Path | None = typer.Option(None, help="A test set, sharded too: find what it has in common with DATA."),
    bits: int = typer.Option(4, help="Up to how many of 64 differing bits of perceptual hashes pixels are compared."),
    apply: Path | None = typer.Option(None, metavar="OUT", help="Write a version without what is to be dropped."),
) -> None:
    """Find duplicates, photos that a test set has too, and, with embeddings, wrong labels and people who look alike.

    Nothing is deleted. The verdict is drop, which --apply leaves out of a new version, or review, for you to judge.

    [bold]Examples[/bold]

        preprocess clean data report

        preprocess clean data report --embeddings embeddings.parquet --against lfw

        preprocess clean data report --embeddings embeddings.parquet --apply data-2
    """
    from rich.console import Console

    from preprocess.clean.run import clean as judge
    from preprocess.storage import one_line_errors

    with one_line_errors(report):
        judge(data, report, embeddings, against, bits, apply, Console())
