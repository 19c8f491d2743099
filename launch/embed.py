"""Write the embeddings of a data set's photos, for `preprocess clean`.

One row a photo that can be read and is not withdrawn, from all splits: its key and the L2-normalised embedding of its
crop, without the mirror image.

    python launch/embed.py --model RUN --data DATA --output embeddings.parquet

    preprocess clean DATA --embeddings embeddings.parquet
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.config.errors import UserError, run_command

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")


@app.command(help=__doc__)
def main(
    model: Annotated[Path, typer.Option(help="a run directory or one checkpoint of it, `step-N`")],
    data: Annotated[Path, typer.Option(help="a data set with crops of the size it was trained on")],
    output: Annotated[Path, typer.Option(help="the Parquet file to write")],
) -> None:
    """Load, embed, write."""
    import numpy as np
    import pyarrow as pa
    import torch
    from rich.console import Console

    from pipeline.checkpoint import load_backbone
    from pipeline.data.manifest import open_dataset
    from pipeline.engine.embed_rows import embed_rows
    from preprocess.progress import show_progress
    from preprocess.storage import one_line_errors, write_parquet

    dataset = open_dataset(data)
    loaded = load_backbone(model, torch.device("cpu"))
    crop_px = dataset.info.crop.size_px
    if loaded.crop_px != crop_px:
        remedy = f"preprocess shard … --size {loaded.crop_px}"
        raise UserError(data, f"crops of {crop_px} px", f"{loaded.crop_px} px, as the model was trained on", remedy)
    tables = []
    num_photos = 0
    for name in dataset.info.splits:
        split = dataset.split(name)
        rows = np.setdiff1d(np.arange(len(split)), split.withdrawn)
        num_photos += len(rows)
        keys = split.manifest(["key"])["key"].combine_chunks()
        with show_progress(Console(), f"embedding {name}", len(rows)) as advance:
            for found, embeddings in embed_rows(loaded.module, split, crop_px, rows):
                flat = pa.array(embeddings.numpy().ravel())
                vectors = pa.FixedSizeListArray.from_arrays(flat, embeddings.shape[1])
                tables.append(pa.table({"key": keys.take(pa.array(found)), "embedding": vectors}))
                advance(len(found))
    if not tables:
        raise UserError(data, "none of its photos can be read", "photos", f"preprocess verify {data}")
    table = pa.concat_tables(tables).combine_chunks()
    with one_line_errors(output):
        write_parquet(table, output, output.parent)
    typer.echo(f"{output}: {len(table):,} embeddings of {loaded.embedding_dim}")
    if len(table) < num_photos:
        typer.echo(f"{num_photos - len(table):,} photos could not be read; preprocess verify {data}")


if __name__ == "__main__":
    run_command(app)
