"""What a worker of a trial does: the same run as under torchrun, with a word to the driver after each validation."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from pipeline.checkpoint import latest_checkpoint
from pipeline.config.errors import TemporaryError, UserError
from pipeline.config.load import validate_config
from pipeline.engine.run import CONFIG_FILE, RunPlan, plan_run
from pipeline.engine.trainer import train
from pipeline.engine.validation import is_patience_over
from pipeline.json_lines import read_lines
from pipeline.monitor.to_jsonl import METRICS_FILE
from pipeline.tuning.reasons import in_a_line, is_memory
from pipeline.tuning.store import RunStore
from pipeline.tuning.trial import TrialError

FIGURES = ("step", "samples", "epoch")
"""What a report holds besides the validation's figures; and `share`, the part of the run that is done."""
KEPT_FILES = (METRICS_FILE, CONFIG_FILE)


def work(loop: Mapping[str, Any]) -> None:
    """Run the trial's configuration. Collective on its workers.

    Args:
        loop: `config`, as plain values; `place`, where the run stands; `begin_from`, see `RunStore.take_up`; `queue`
            for reports, and `answers`, in which each is confirmed.
    """
    queue, answers, store = loop["queue"], loop["answers"], RunStore(loop["place"])
    is_first = os.environ.get("RANK", "0") == "0"
    try:
        if is_first:
            store.take_up(loop["begin_from"])
        torch.distributed.barrier()
        plan = plan_run(validate_config({**loop["config"], "output": str(store.folder)}))

        def hand_in(record: Mapping[str, float | int], is_last: bool) -> None:
            checkpoint = latest_checkpoint(plan.checkpoints)
            figures = {name: value for name, value in record.items() if name.startswith("val/") or name in FIGURES}
            share = 1.0 if is_last else record["samples"] / plan.total_samples
            queue.put({**figures, "share": share, "checkpoint": checkpoint and store.name_of(checkpoint)})
            # a trial that ran ahead of what is decided on its report would be stopped, or paused, at another step
            while answers.get() != record["step"]:
                pass  # for a report of workers that have died

        def listen(record: Mapping[str, float | int], is_last: bool) -> None:
            if is_first:
                store.keep_newest(KEPT_FILES)
                hand_in(record, is_last)

        if is_first:  # those who were told before may have died before they could say so
            store.keep_newest(KEPT_FILES)
            for record, is_last in _validations_before(plan):
                hand_in(record, is_last)
        train(plan, listen)
    except TemporaryError:
        raise  # the same may succeed in a while
    except (UserError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not is_memory(error):
            raise  # a peer may have died: Ray Train starts the workers again
        raise TrialError(in_a_line(error)) from error


def _validations_before(plan: RunPlan) -> list[tuple[dict[str, Any], bool]]:
    """Records of what was validated up to the checkpoint that a run goes on from, and whether the run ended with it."""
    if plan.resume is None:
        return []
    info = plan.resume.info
    found = [
        record
        for record in read_lines(plan.config.output / METRICS_FILE)
        if "val/score" in record and record["samples"] <= info.samples
    ]
    is_over = info.samples >= plan.total_samples or is_patience_over(plan.config.validation, info.validation)
    return [(record, is_over and record["samples"] == info.samples) for record in found]
