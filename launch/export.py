"""Write a trained model's weights as safetensors, which nobody needs a pickle to read.

    python launch/export.py build/demo/run --safetensors build/demo/model.safetensors

    python launch/export.py RUN/checkpoints/best --safetensors model.safetensors --centres centres.safetensors

A recipe begins from such a file with `init_from.path=model.safetensors`.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pipeline.config.errors import run_command

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")


class Which(StrEnum):
    """Which of a backbone's weights."""

    ema = "ema"
    raw = "raw"


@app.command(help=__doc__)
def main(
    checkpoint: Annotated[Path, typer.Argument(help="a run directory, `checkpoints/best` or one checkpoint")],
    safetensors: Annotated[Path, typer.Option(help="file for the backbone's weights")],
    centres: Annotated[Path | None, typer.Option(help="file for the class centres, too")] = None,
    weights: Annotated[Which | None, typer.Option(help="default: ema where the checkpoint has an average")] = None,
) -> None:
    """Read a checkpoint, write files."""
    from pipeline.export import export_backbone, export_centres

    loaded = export_backbone(checkpoint, safetensors, None if weights is None else weights.value)
    count = sum(tensor.numel() for tensor in loaded.module.parameters())
    typer.echo(f"{safetensors}: {count:,} parameters ({loaded.weights}), step {loaded.step:,}")
    if centres is not None:
        shape = export_centres(checkpoint, centres)
        typer.echo(f"{centres}: class centres {' × '.join(f'{size:,}' for size in shape)}")


if __name__ == "__main__":
    run_command(app)
