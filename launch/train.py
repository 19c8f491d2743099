"""Train a face model.

A run that stands in `output` is resumed, on any number of ranks. SIGTERM or Ctrl-C saves a checkpoint and leaves.

    torchrun --nproc-per-node 2 launch/train.py --config configs/demo_cpu.yaml

    torchrun --nproc-per-node 2 launch/train.py --config configs/demo_cpu.yaml training.epochs=2 optim.backbone.lr=0.05

    python launch/train.py --config configs/demo_cpu.yaml --check      # only check configuration, data and checkpoint

    python launch/train.py --describe                                  # list all configuration keys
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from pipeline.config.errors import EXIT_PREEMPTED, UserError, run_command

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")


@app.command(help=__doc__)
def main(
    overrides: Annotated[list[str] | None, typer.Argument(help="key.path=value, over the file's values")] = None,
    config: Annotated[Path | None, typer.Option(help="a recipe, see configs/")] = None,
    check: Annotated[bool, typer.Option("--check", help="check configuration, data and checkpoint, then stop")] = False,
    describe: Annotated[bool, typer.Option("--describe", help="list every configuration key")] = False,
) -> None:
    """Run or check a recipe."""
    from pipeline.config.load import config_fields, load_config

    if describe:
        for key, default, description in config_fields():
            typer.echo(f"{key} = {default}\n    {description}")
        return
    if config is None:
        raise UserError("--config", "missing", "a recipe", "for example --config configs/demo_cpu.yaml")
    loaded = load_config(config, overrides or [])
    from pipeline.engine.run import plan_run

    plan = plan_run(loaded)
    if check:
        typer.echo(f"fine: {len(plan.split):,} samples, {plan.split.num_labels:,} identities, {plan.crop_px} px crops")
        return
    from pipeline.engine.trainer import train

    result = train(plan)
    if not result.is_finished and "RANK" not in os.environ:
        raise SystemExit(EXIT_PREEMPTED)  # under torchrun the supervisor says it: there it would count as a crash


if __name__ == "__main__":
    run_command(app)
