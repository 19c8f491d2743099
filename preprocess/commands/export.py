"""`preprocess export`."""

from __future__ import annotations

from pathlib import Path

import typer


def export(
    data: Path = typer.Argument(..., metavar="DATA", help="A finished data set."),
    out: Path = typer.Argument(..., metavar="OUT", help="Folder to make."),
    kind: str = typer.Option(..., "--format", help="folders (OUT/IDENTITY/KEY.jpg) or rec (InsightFace's RecordIO)."),
    split: str = typer.Option("train", help="The split to export."),
) -> None:
    """Write a split's photos for other tools: as a folder of people, or as train.rec, .idx, .lst and property.

    JPEGs are copied byte for byte, each checked against its CRC. OUT appears when it is complete; interrupted, the same
    command goes on (folders) or begins again (rec).

    [bold]Examples[/bold]

        preprocess export data photos --format folders

        preprocess export data faces --format rec --split val
    """
    from rich.console import Console

    from preprocess.export import FORMATS, open_samples
    from preprocess.progress import show_progress
    from preprocess.storage import one_line_errors

    console = Console()
    with one_line_errors(out):
        samples = open_samples(data, out, kind, split)
        with show_progress(console, "exporting", len(samples)) as advance:
            FORMATS[kind](samples, out, advance)
    people = len(samples.identities)
    console.print(f"{out}: {len(samples):,} photos of {people:,} identities", highlight=False, markup=False)
