"""Import a model of InsightFace's arcface_torch: a backbone, and the class centres of all ranks.

Files are read weights-only. Without `--config` the result is a checkpoint to
evaluate. With a recipe it is a run at step 0 that `launch/train.py` goes on from:
the imported backbone, and the imported class centres or, for other people, new ones.

    python launch/import_arcface.py --backbone backbone.pth --output build/r50
    python launch/evaluate.py --model build/r50 --data DATA --pairs pairs.txt

    python launch/import_arcface.py --backbone model.pt --config recipe.yaml output=build/tuned backbone.depth=100
    torchrun --nproc-per-node 2 launch/train.py --config build/tuned/config.yaml

    python launch/import_arcface.py --backbone model.pt --centres work_dirs/r50 --config recipe.yaml
    python launch/import_arcface.py --backbone model.pt --output build/r50 --check-crops reference.npz
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.config.errors import UserError, run_command

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")


@app.command(help=__doc__)
def main(
    backbone: Annotated[Path, typer.Option(help="backbone.pth, model.pt, checkpoint_gpu_0.pt or an .onnx file")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key.path=value, over the recipe's values")] = None,
    output: Annotated[Path | None, typer.Option(help="the run's directory, where no recipe names it")] = None,
    config: Annotated[Path | None, typer.Option(help="a recipe: make a run to train on")] = None,
    centres: Annotated[Path | None, typer.Option(help="directory with all ranks' files of class centres")] = None,
    check_crops: Annotated[Path | None, typer.Option(help=".npz of `crops` and arcface_torch's `embeddings`")] = None,
) -> None:
    """Read, check, write."""
    from pipeline.interop import imported
    from pipeline.interop.arcface_torch import read_backbone, read_centres

    if (config is None) == (output is None):
        found = "neither is given" if config is None else "both are given"
        raise UserError("--output, --config", found, "one of them: a recipe says where its run stands", "output=DIR")
    if config is None and (centres is not None or overrides):
        where = "--centres" if centres is not None else (overrides or [""])[0]
        raise UserError(where, "given without a recipe", "--config RECIPE, whose data set says who is who")
    read = read_backbone(backbone)
    typer.echo(f"{backbone}: IResNet-{read.config.depth}, {read.crop_px} px, {read.config.embedding_dim} dimensions")
    if check_crops is not None:
        difference = imported.check_crops(imported.evaluation_model(read), check_crops)
        typer.echo(f"{check_crops}: the same embeddings, within {difference:.1e} of the greatest value")
    origin = imported.origin_of(backbone)
    if config is None:
        from preprocess.align import template

        assert output is not None
        points = template(read.crop_px).ravel().tolist()
        typer.echo(f"written: {imported.save_for_evaluation(output, read, points, origin)}")
        return

    from pipeline.config.load import load_config
    from pipeline.engine.run import plan_run, write_config
    from pipeline.engine.state import prepare_start

    plan = plan_run(load_config(config, overrides or []))
    start = prepare_start(plan)
    imported.put_backbone(start, read, backbone)
    if centres is not None:
        check = imported.put_centres(start, read_centres(centres), centres)
        typer.echo(
            f"{plan.split.num_labels:,} class centres; of {check.num_photos:,} photos {check.nearest_share:.0%} are "
            f"nearest to their own person's, mean cosine {check.own_cosine:.2f}"
        )
    written = start.save(origin)
    write_config(plan.config)
    typer.echo(f"written: {written}")


if __name__ == "__main__":
    run_command(app)
