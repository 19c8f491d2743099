"""`preprocess preview`."""

from __future__ import annotations

from pathlib import Path

import typer

from pipeline.config.errors import UserError


def preview(
    data: Path = typer.Argument(..., metavar="DATA", help="A finished data set."),
    out: Path = typer.Option(Path("preview.jpg"), help="The sheet, .jpg or .png."),
    config: Path | None = typer.Option(None, help="A recipe, for its data.augment; none: each operation in turn."),
    override: list[str] = typer.Option([], "--set", help="key=value of the recipe; repeat it for more."),
    split: str = typer.Option("train", help="Which split."),
    rows: int = typer.Option(8, min=1, max=100, help="Photos."),
    columns: int = typer.Option(7, min=1, max=50, help="Variants of each."),
    seed: int | None = typer.Option(None, help="Of the draws; the recipe's own, or 0, when left out."),
) -> None:
    """Draw a contact sheet of what augmentation does to photos of DATA.

    [bold]Examples[/bold]

        preprocess preview data --out operations.jpg

        preprocess preview data --config recipe.yaml --out epochs.jpg

        preprocess preview data --config recipe.yaml --set 'data.augment=[{kind: flip}, {kind: blur}]'
    """
    import typing

    from PIL import Image

    from pipeline.config import augment
    from pipeline.config.load import load_config
    from pipeline.data.manifest import open_dataset
    from pipeline.data.preview import contact_sheet, sheet_of_each
    from preprocess.storage import one_line_errors

    if out.suffix not in (".jpg", ".png"):
        raise UserError(out, f"a sheet in the format {out.suffix or 'without a name'}", ".jpg or .png")
    if override and config is None:
        raise UserError("--set", override[0], "a recipe to change", "add --config FILE")
    with one_line_errors(data):
        dataset = open_dataset(data)
        index, crop_px = dataset.split(split), dataset.info.crop.size_px
        if config is None:
            each = [kind() for kind in typing.get_args(augment.Leaf)]
            sheet = sheet_of_each(index, each, crop_px=crop_px, seed=seed or 0, columns=columns)
        else:
            recipe = load_config(config, [*override, f"data.path={data}"])
            chosen = recipe.seed if seed is None else seed
            sheet = contact_sheet(
                index,
                recipe.data.augment,
                crop_px=crop_px,
                seed=chosen,
                rows=rows,
                columns=columns,
            )
    with one_line_errors(out):
        Image.fromarray(sheet.pixels).save(out, quality=92)
    left_out = f"; left out, as they cannot be read: {sheet.num_unreadable:,}" if sheet.num_unreadable else ""
    typer.echo(f"{out}: {sheet.pixels.shape[1]} × {sheet.pixels.shape[0]} px{left_out}")
