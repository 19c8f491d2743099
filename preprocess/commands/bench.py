"""`preprocess bench`."""

from __future__ import annotations

from pathlib import Path

import typer

from pipeline.config.errors import UserError


def bench(
    data: Path = typer.Argument(..., metavar="DATA", help="A finished data set."),
    config: Path | None = typer.Option(None, help="A recipe, for its order, decoder, augmentation and threads."),
    override: list[str] = typer.Option([], "--set", help="key=value of the recipe; repeat it for more."),
    split: str = typer.Option("train", help="Which split."),
    batch: int = typer.Option(256, min=1, help="Photos of a batch."),
    steps: int = typer.Option(40, min=1, help="Batches."),
    threads: int = typer.Option(2, min=1, help="Threads that read and decode."),
    decoder: str = typer.Option("cpu", help="cpu or dali."),
) -> None:
    """Measure how fast training could read DATA, and name the bottleneck.

    Runs the training loader on one rank without a model. The first pass over a data set reads from the store, later
    ones from the page cache; run it twice to see both. With --config, the recipe's `data` section counts.

    [bold]Examples[/bold]

        preprocess bench data

        preprocess bench data --config recipe.yaml --set data.num_threads=8
    """
    from rich.console import Console

    from pipeline.config.augment import Augmentation
    from pipeline.config.decoder import CpuDecoder, DaliDecoder
    from pipeline.config.load import load_config
    from pipeline.config.order import OrderConfig, PlainOrderConfig
    from pipeline.data.bench import measure_loader, show
    from pipeline.data.manifest import open_dataset
    from pipeline.data.orders import balanced_parts, build_order
    from preprocess.storage import one_line_errors

    if decoder not in ("cpu", "dali"):
        raise UserError("--decoder", decoder, "cpu or dali")
    if override and config is None:
        raise UserError("--set", override[0], "a recipe to change", "add --config FILE")
    with one_line_errors(data):
        dataset = open_dataset(data)
        index = dataset.split(split)
        batch = min(batch, len(index))
        order_config: OrderConfig = PlainOrderConfig()
        augment: tuple[Augmentation, ...] = ()
        chosen: CpuDecoder | DaliDecoder = CpuDecoder() if decoder == "cpu" else DaliDecoder()
        if config is None:
            if override:
                raise UserError("--set", override[0], "a recipe to change", "add --config FILE")
        else:
            section = load_config(config, [*override, f"data.path={data}"]).data
            order_config, augment, chosen, threads = (
                section.order,
                section.augment,
                section.decoder,
                section.num_threads,
            )
        parts = balanced_parts(order_config, batch, (), 0)
        result = measure_loader(
            index,
            build_order(order_config, index, 0, parts),
            decoder=chosen,
            augment=augment,
            crop_px=dataset.info.crop.size_px,
            num_steps=steps,
            batch=batch,
            num_threads=threads,
        )
        show(result, threads, Console())
