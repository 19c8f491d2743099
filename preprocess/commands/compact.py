"""`preprocess compact`."""

from __future__ import annotations

from pathlib import Path

import typer


def compact(
    data: Path = typer.Argument(..., metavar="DATA", help="A finished data set with withdrawn samples."),
    out: Path = typer.Argument(..., metavar="OUT", help="Folder to make."),
) -> None:
    """Write a data set without the withdrawn samples, crops and manifest rows alike.

    Labels, keys and splits stay; the digest is new. OUT appears when it is complete; interrupted, the same command
    goes on.

    [bold]Examples[/bold]

        preprocess compact data data-2
    """
    from rich.console import Console

    from preprocess.compact import write_version
    from preprocess.storage import one_line_errors

    console = Console()
    with one_line_errors(out):
        info, num_withdrawn = write_version(data, out, (), "compacting", console)
    text = f"{out}: {info.num_samples:,} photos, without {num_withdrawn:,} withdrawn samples; digest {info.digest[:16]}"
    console.print(text, highlight=False, markup=False, soft_wrap=True)
