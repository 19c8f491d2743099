"""A trial: one distributed run with one setting, from its driver to what a worker does.

The driver is Ray Tune's function. It starts the workers with Ray Train and hands on what their first rank reports. A
worker or a node that dies is replaced, and the run goes on from its checkpoint. What another attempt would not change,
such as numbers that are not finite or memory that does not suffice, ends the trial with its reason.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.atomic_write import write_atomically
from pipeline.checkpoint import latest_checkpoint
from pipeline.config.errors import TemporaryError, UserError
from pipeline.config.load import validate_config
from pipeline.config.location import parse_location
from pipeline.config.search import WorkersConfig
from pipeline.engine.run import CONFIG_FILE, RunPlan, plan_run
from pipeline.engine.trainer import train
from pipeline.engine.validation import is_patience_over
from pipeline.json_lines import read_lines
from pipeline.monitor.to_jsonl import METRICS_FILE
from pipeline.tuning.reasons import in_a_line, is_memory
from pipeline.tuning.store import RunStore

ORIGIN = "origin.json"
FAILED = "failed.txt"
FIGURES = ("step", "samples", "epoch")
"""What a report holds besides the validation's figures; and `share`, the part of the run that is done."""
KEPT_FILES = (METRICS_FILE, CONFIG_FILE)
_POLL_S = 1.0


class TrialError(Exception):
    """A trial that another attempt would not help, with its reason in a line."""


@dataclass(frozen=True)
class TrialTask:
    """What all trials of a search share."""

    make_config: Callable[[Mapping[str, Any]], dict[str, Any]]
    """From Tune's drawn values to a run's configuration as plain values, its paths absolute."""
    runs: str
    """Where runs stand: a folder or a URL."""
    workers: WorkersConfig
    """Processes of a trial."""


def run_trial(drawn: dict[str, Any], task: TrialTask) -> None:
    """Ray Tune's function: one trial from where it stands to its end.

    Raises:
        TrialError: the run cannot succeed.
    """
    from ray import tune

    trial = tune.get_context().get_trial_id()
    own = parse_location(task.runs) / trial
    origin = _read_origin(tune.get_checkpoint())
    if origin is not None and origin["trial"] == trial:
        store = RunStore(parse_location(origin["place"]))
    else:  # begun anew, or from the checkpoint of a better one
        store = RunStore(own / f"run-{uuid.uuid4().hex[:8]}" if origin else own / "run")
    grave = store.folder / FAILED
    if grave.exists():  # Tune tries again whatever the reason was
        raise TrialError(grave.read_text())
    try:
        config = task.make_config(drawn)
        known_step = -1 if origin is None or origin["trial"] != trial else int(origin["step"])
        begin_from = None if origin is None else origin["checkpoint"]
        for report in _reports(config, store, begin_from, known_step, task.workers):
            _hand_on(report, trial, store)
    except (UserError, TrialError) as error:
        grave.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(grave, str(error).encode())
        raise TrialError(str(error)) from None


def _hand_on(report: dict[str, Any], trial: str, store: RunStore) -> None:
    """Tell Tune; what it keeps as the trial's checkpoint says where ours is."""
    from ray import tune

    checkpoint = report.pop("checkpoint")
    if checkpoint is None:
        tune.report(report)
        return
    with tempfile.TemporaryDirectory() as folder:
        kept = {"trial": trial, "place": str(store.place), "checkpoint": checkpoint, "step": str(report["step"])}
        (Path(folder) / ORIGIN).write_text(json.dumps(kept))
        tune.report(report, checkpoint=tune.Checkpoint.from_directory(folder))


def _read_origin(checkpoint: Any) -> dict[str, str] | None:
    """Where a trial stood when it reported last, or where the one stood whose checkpoint it takes over."""
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder:
        found: dict[str, str] = json.loads((Path(folder) / ORIGIN).read_text())
    return found


def _reports(
    config: dict[str, Any], store: RunStore, begin_from: str | None, known_step: int, workers: WorkersConfig
) -> Iterator[dict[str, Any]]:
    """Run the workers to their end; gives what the first rank reports, which waits until the next is asked for.

    Reports up to `known_step`, and those that are made twice, are left out. The last one comes when the workers have
    put things in order; Tune is told with it that the trial is done.
    """
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.util.queue import Empty, Queue

    queue, answers = (Queue(actor_options={"num_cpus": 0}) for _ in range(2))
    loop = {"config": config, "store": store, "begin_from": begin_from, "queue": queue, "answers": answers}
    needs = {"CPU": workers.cpus} | ({"GPU": workers.gpus} if workers.gpus else {})
    is_shared = isinstance(store.place, Path)
    trainer = TorchTrainer(
        _work,
        train_loop_config=loop,
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if workers.gpus else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.count,
            use_gpu=bool(workers.gpus),
            resources_per_worker=needs,
            # ranks write one checkpoint together, so they have to share its folder
            placement_strategy="PACK" if is_shared else "STRICT_PACK",
        ),
        run_config=ray.train.RunConfig(
            name=f"ray-{uuid.uuid4().hex[:8]}",
            storage_path=tempfile.gettempdir() if not is_shared else str(store.folder),
            failure_config=ray.train.FailureConfig(max_failures=workers.max_failures),
        ),
    )
    ended: list[BaseException | None] = []

    def fit() -> None:
        try:
            trainer.fit()
            ended.append(None)
        except BaseException as error:
            ended.append(error)

    threading.Thread(target=fit, name="workers", daemon=True).start()
    last: dict[str, Any] | None = None
    while True:
        is_over = bool(ended)  # asked before the queue, so that nothing stays in it
        try:
            message = queue.get(timeout=_POLL_S)
        except Empty:
            if is_over:
                break
            continue
        if "failure" in message:
            raise TrialError(message["failure"])
        step = message["step"]
        if step > known_step:
            known_step = step
            if message["share"] >= 1:
                last = {**message, "done": True}
            else:
                yield message
        answers.put(step)
    if ended[0] is not None:
        raise TrialError(in_a_line(ended[0]))
    if last is not None:
        yield last


def _work(loop: Mapping[str, Any]) -> None:
    """What a worker does: the same run as under torchrun."""
    queue, store, answers = loop["queue"], loop["store"], loop["answers"]
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
        queue.put({"failure": in_a_line(error)})
        raise


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
