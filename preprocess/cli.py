"""The `preprocess` command: photos in, shards and a manifest out.

    preprocess synth build/photos --identities 100 --photos 20
    preprocess shard build/photos build/data --val-identities 0.1
    preprocess verify build/data

Each command imports its implementation when it runs, so that `--help` is quick.
"""

from __future__ import annotations

from pathlib import Path

import typer

from pipeline.config.errors import run_command

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)


@app.callback()
def _root() -> None:
    """Photos in, verified shards and a manifest out."""


@app.command()
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

    from preprocess.synthetic.command import run_synth

    run_synth(out, identities, photos, seed, size, quality, workers or os.cpu_count() or 1)


def main() -> None:
    """Entry point of the console script."""
    run_command(app)


if __name__ == "__main__":
    main()
