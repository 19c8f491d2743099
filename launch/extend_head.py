"""Move a trained head to a data set with new people.

`--data` holds the people of the old run, matched by name and numbered as it
likes, and new ones. Who stays keeps the class centre and its optimizer's state;
a new person's centre is the mean embedding of their photos; who is no longer
there is dropped and counted. The result in `--output` is a run at step 0.

    python launch/extend_head.py --checkpoint RUN --data NEW_DATA --output NEW_RUN

    torchrun --nproc-per-node 2 launch/train.py --config NEW_RUN/config.yaml

    python launch/extend_head.py --checkpoint RUN --data NEW_DATA --output NEW_RUN --map names.csv    # lines old,new

    python launch/extend_head.py --checkpoint RUN --data NEW_DATA --output NEW_RUN head.frozen_classes=1000
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Annotated

import typer

from pipeline.config.errors import UserError, run_command

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")


@app.command(help=__doc__)
def main(
    checkpoint: Annotated[Path, typer.Option(help="a run directory or one checkpoint of it, `step-N`")],
    data: Annotated[Path, typer.Option(help="the data set to go on with")],
    output: Annotated[Path, typer.Option(help="directory of the new run")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key.path=value, over the old run's values")] = None,
    old_data: Annotated[Path | None, typer.Option(help="the old run's data set; default: where it stood")] = None,
    renames: Annotated[
        Path | None, typer.Option("--map", help="CSV of old,new names of those called otherwise")
    ] = None,
) -> None:
    """Match, carry over, imprint, save."""
    from pipeline.checkpoint import find_checkpoint, read_info, read_tensors
    from pipeline.config.load import apply_override, validate_config
    from pipeline.engine import new_people
    from pipeline.engine.run import plan_run, write_config
    from pipeline.engine.state import prepare_start

    found = find_checkpoint(checkpoint)
    info = read_info(found)
    old = new_people.old_identities(info, found, old_data)
    tree = copy.deepcopy(info.config)
    for override in (*(overrides or []), f"output={json.dumps(str(output))}", f"data.path={json.dumps(str(data))}"):
        apply_override(tree, override)
    plan = plan_run(validate_config(tree, where=str(found)))
    crop_px = int(info.dataset["crop"]["size_px"])
    if plan.crop_px != crop_px:
        remedy = f"preprocess shard … --size {crop_px}"
        raise UserError(data, f"crops of {plan.crop_px} px", f"{crop_px} px, as the model was trained on", remedy)
    new = plan.split.identities()
    change = new_people.match_identities(old, new, new_people.read_renames(renames) if renames else {}, data)
    num_frozen = getattr(plan.config.head, "frozen_classes", 0)
    new_people.check_frozen(change, num_frozen)
    start = prepare_start(plan)
    new_people.carry_over(start, read_tensors(found), change)
    num_unread = new_people.imprint(start, plan.split, plan.crop_px, change)
    written = start.save({"extended_from": str(found)})
    write_config(plan.config)
    num_kept = int(change.kept.sum())
    typer.echo(f"{written}: {num_kept:,} people kept, {len(new) - num_kept:,} new, {change.num_dropped:,} dropped")
    if num_unread:
        typer.echo(f"{num_unread:,} photos of new people could not be read; preprocess verify {data}")
    if change.keeps_order and num_kept < len(new) and not num_frozen:
        typer.echo(f"the old people keep labels 0 to {num_kept - 1:,}; head.frozen_classes={num_kept} would hold them")


if __name__ == "__main__":
    run_command(app)
