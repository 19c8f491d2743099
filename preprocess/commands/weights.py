"""`preprocess weights`."""

from __future__ import annotations

from pathlib import Path

import typer


def weights(
    name: str = typer.Argument(..., metavar="NAME", help="Which weights: yunet."),
    out: Path | None = typer.Option(None, help="Folder; else $FACEMILL_WEIGHTS, or facemill/weights in your cache."),
) -> None:
    """Download a detector's weights from their official address, and refuse them if their sha256 is another.

    Interrupted, the same command goes on. `preprocess shard --detector NAME` finds weights in the default folder.

    [bold]Examples[/bold]

        preprocess weights yunet

        preprocess weights yunet --out models
    """
    from rich.console import Console

    from preprocess.detect.weights import download, find_weights, weights_folder
    from preprocess.progress import show_progress
    from preprocess.storage import one_line_errors

    chosen = find_weights(name)
    folder = out or weights_folder()
    with one_line_errors(folder), show_progress(Console(), name, chosen.num_bytes, unit="bytes") as advance:
        shown = 0

        def on_bytes(done: int) -> None:
            nonlocal shown
            advance(done - shown)
            shown = done

        path = download(chosen, folder, on_bytes)
    typer.echo(f"{path}\nsha256 {chosen.sha256}, licence {chosen.licence}")
