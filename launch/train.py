"""Train a face model.

A run that stands in `output` is resumed, on any number of ranks. SIGTERM or Ctrl-C saves a checkpoint and leaves.

    torchrun --nproc-per-node 2 launch/train.py --config configs/demo_cpu.yaml

    torchrun --nproc-per-node 2 launch/train.py --config configs/demo_cpu.yaml training.epochs=2 optim.backbone.lr=0.05

    python launch/train.py --config configs/demo_cpu.yaml --check      # only check configuration, data and checkpoint

    torchrun --nproc-per-node 2 launch/train.py --config configs/demo_cpu.yaml --preflight   # machines, network, disk

    python launch/train.py --describe                                  # list all configuration keys

    python launch/train.py --config configs/demo_cpu.yaml --estimate --ranks 4 --num-classes 100000   # memory and time
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.config.errors import EXIT_PREEMPTED, EXIT_USER_ERROR, UserError, run_command
from pipeline.config.status import report_status
from pipeline.process_tree import leave_with_launcher
from pipeline.quick_imports import quick_imports

if TYPE_CHECKING:
    from pipeline.config.schema import Config

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")


@app.command(help=__doc__)
def main(
    overrides: Annotated[list[str] | None, typer.Argument(help="key.path=value, over the file's values")] = None,
    config: Annotated[Path | None, typer.Option(help="a recipe, see configs/")] = None,
    check: Annotated[bool, typer.Option("--check", help="check configuration, data and checkpoint, then stop")] = False,
    preflight: Annotated[bool, typer.Option("--preflight", help="look at what all ranks depend on, then stop")] = False,
    describe: Annotated[bool, typer.Option("--describe", help="list every configuration key")] = False,
    estimate: Annotated[bool, typer.Option("--estimate", help="measure what a rank will need, then stop")] = False,
    ranks: Annotated[int | None, typer.Option(min=1, help="estimate for so many ranks; default: 1")] = None,
    num_classes: Annotated[int | None, typer.Option(min=2, help="estimate for so many people, without data")] = None,
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
    if estimate:
        typer.echo(_estimate(loaded, ranks or 1, num_classes))
        return
    if ranks is not None or num_classes is not None:
        raise UserError(
            "--ranks, --num-classes", "given without --estimate", "torchrun --nproc-per-node says the ranks"
        )
    if preflight and not check:
        _preflight(loaded)
        return
    with quick_imports():
        from pipeline.engine.run import plan_run

    plan = plan_run(loaded)
    if check:
        typer.echo(f"fine: {len(plan.split):,} samples, {plan.split.num_labels:,} identities, {plan.crop_px} px crops")
        return
    with quick_imports():
        from pipeline.engine.trainer import train

    result = train(plan)
    # A launcher that was told to stop counts any code but 0 as a crash; the supervisor says 75 for it. On nodes that
    # may stay it is the other way round: after a 0 they would wait for the one that left and then close their meeting
    # place for good; after a failure they meet anew without it, where restarts are allowed.
    if not result.is_finished and not (result.is_signalled and "RANK" in os.environ):
        raise SystemExit(EXIT_PREEMPTED)


def _preflight(config: Config) -> None:
    from pipeline.engine.preflight import Verdict, preflight, table

    findings = preflight(config)
    is_first = os.environ.get("RANK", "0") == "0"
    if is_first:
        typer.echo(table(findings))
    failed = [finding.subject for finding in findings if finding.verdict is Verdict.FAILURE]
    if failed:
        report_status(UserError.state, failed=failed)
        raise SystemExit(EXIT_USER_ERROR)


def _estimate(config: Config, num_ranks: int, num_classes: int | None) -> str:
    from pipeline.data.training_data import open_training_data
    from pipeline.engine.estimate import USUAL_CROP_PX, describe, estimate

    if num_classes is not None:
        return describe(estimate(config, num_classes, num_ranks, USUAL_CROP_PX))
    data = open_training_data(config.data)
    return describe(estimate(config, data.split.num_labels, num_ranks, data.crop.size_px))


def load_modules() -> None:
    """What a rank needs and takes seconds to load, whatever the configuration says."""
    leave_with_launcher()
    if "RANK" in os.environ:
        with quick_imports():
            import pipeline.engine.trainer  # noqa: F401


if __name__ == "__main__":
    run_command(app, prepare=load_modules)
