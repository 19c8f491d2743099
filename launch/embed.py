"""Write the embeddings of a data set's photos, for `preprocess clean` and `launch/evaluate.py`.

One row a photo that can be read and is not withdrawn, from all splits: its key and what the model gives for its crop,
not normalised, without the mirror image. Stopped, the same command goes on with the parts that are missing in
`OUTPUT.parts`; under torchrun each rank makes its share, and the file is the same.

    python launch/embed.py --model RUN --data DATA --output embeddings.parquet

    torchrun --nproc-per-node 2 launch/embed.py --model model.onnx --data DATA --output embeddings.parquet

    preprocess clean DATA --embeddings embeddings.parquet
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pipeline.config.errors import UserError, run_command

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")


class Device(StrEnum):
    """Where the model runs."""

    cpu = "cpu"
    cuda = "cuda"


@app.command(help=__doc__)
def main(
    model: Annotated[str, typer.Option(help="a run, a checkpoint of it, FILE.onnx or module:function")],
    data: Annotated[Path, typer.Option(help="a data set with crops of the size that the model takes")],
    output: Annotated[Path, typer.Option(help="the Parquet file to write")],
    takes: Annotated[
        str | None,
        typer.Option("--input", help='what a foreign model takes: "size=112x96 colour=BGR mean=127.5 std=128"'),
    ] = None,
    device: Annotated[Device | None, typer.Option(help="default: cuda where there is one")] = None,
) -> None:
    """Load, embed, write."""
    import torch
    from rich.console import Console

    from pipeline import dist
    from pipeline.data.manifest import open_dataset
    from pipeline.inputs.embedded_dataset import embed_dataset
    from pipeline.inputs.models import open_model
    from preprocess.progress import show_progress

    place = dist.initialise(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    is_first = dist.rank() == 0
    try:
        dataset = open_dataset(data)
        recogniser = open_model(model, place, None, takes)
        if recogniser.embedder.stored is not None:
            raise UserError(model, "embeddings already", "a model")
        for note in recogniser.notes if is_first else []:
            typer.echo(f"note: {note}")
        with ExitStack() as display:

            def show(total: int, done: int) -> Callable[[int], None]:
                if not is_first:
                    return lambda count: None
                return display.enter_context(show_progress(Console(), "embedding", total, done))

            num_embedded, num_photos = embed_dataset(recogniser, dataset, output, show)
        if is_first:
            typer.echo(f"{output}: {num_embedded:,} embeddings of {recogniser.description.embedding_dim}")
            if num_embedded < num_photos:
                typer.echo(f"{num_photos - num_embedded:,} photos could not be read; preprocess verify {data}")
    finally:
        dist.shutdown()


if __name__ == "__main__":
    run_command(app)
