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

    from pipeline.data.manifest import open_dataset
    from pipeline.data.tombstones import read_tombstones
    from preprocess.compact import compact as write_without
    from preprocess.progress import show_progress
    from preprocess.storage import one_line_errors

    console = Console()
    with one_line_errors(out):
        num_shards = sum(len(split.shards) for split in open_dataset(data).info.splits.values())
        withdrawn = read_tombstones(data)["sample_id"].to_pylist()
        with show_progress(console, "compacting", num_shards, unit="shards") as advance:
            info = write_without(data, out, withdrawn, advance)
    kept = sum(split.num_samples for split in info.splits.values())
    text = f"{out}: {kept:,} photos, without {len(withdrawn):,} withdrawn samples; digest {info.digest[:16]}"
    console.print(text, highlight=False, markup=False, soft_wrap=True)
