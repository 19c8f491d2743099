"""A trial: one distributed run with one setting, as its driver sees it.

The driver is Ray Tune's function. It starts the workers with Ray Train and hands on what their first rank reports. A
worker or a node that dies is replaced, and the run goes on from its checkpoint. What another attempt would not change,
such as numbers that are not finite or memory that does not suffice, ends the trial with its reason.

The drivers and controllers of all trials load this module: what takes long to load is imported by those who need it.
"""

from __future__ import annotations

import json
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.atomic_write import write_atomically
from pipeline.config.errors import UserError
from pipeline.config.location import Location, parse_location
from pipeline.config.search import WorkersConfig
from pipeline.quick_imports import quick_imports
from pipeline.tuning.reasons import in_a_line
from pipeline.tuning.run_folder import run_folder

ORIGIN = "origin.json"
FAILED = "failed.txt"
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
        place = parse_location(origin["place"])
    else:  # begun anew, or from the checkpoint of a better one
        place = own / f"run-{uuid.uuid4().hex[:8]}" if origin else own / "run"
    grave = run_folder(place) / FAILED
    if grave.exists():  # Tune tries again whatever the reason was
        raise TrialError(grave.read_text())
    try:
        config = task.make_config(drawn)
        known_step = -1 if origin is None or origin["trial"] != trial else int(origin["step"])
        begin_from = None if origin is None else origin["checkpoint"]
        for report in _reports(config, place, begin_from, known_step, task.workers):
            _hand_on(report, trial, place)
    except (UserError, TrialError) as error:
        grave.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(grave, str(error).encode())
        raise TrialError(str(error)) from None


def _hand_on(report: dict[str, Any], trial: str, place: Location) -> None:
    """Tell Tune; what it keeps as the trial's checkpoint says where ours is."""
    from ray import tune

    checkpoint = report.pop("checkpoint")
    if checkpoint is None:
        tune.report(report)
        return
    with tempfile.TemporaryDirectory() as folder:
        kept = {"trial": trial, "place": str(place), "checkpoint": checkpoint, "step": str(report["step"])}
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
    config: dict[str, Any], place: Location, begin_from: str | None, known_step: int, workers: WorkersConfig
) -> Iterator[dict[str, Any]]:
    """Run the workers to their end; gives what the first rank reports, which waits until the next is asked for.

    Reports up to `known_step`, and those that are made twice, are left out. The last one comes when the workers have
    put things in order; Tune is told with it that the trial is done.
    """
    from ray.util.queue import Empty, Queue

    queue, answers = (Queue(actor_options={"num_cpus": 0}) for _ in range(2))  # their processes start meanwhile
    with quick_imports():
        import ray.train
        from ray.train.torch import TorchConfig, TorchTrainer

        from pipeline.tuning.no_retry import NoRetry

    loop = {"config": config, "place": place, "begin_from": begin_from, "queue": queue, "answers": answers}
    needs = {"CPU": workers.cpus} | ({"GPU": workers.gpus} if workers.gpus else {})
    is_shared = isinstance(place, Path)
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
            storage_path=tempfile.gettempdir() if not is_shared else str(place),
            failure_config=ray.train.FailureConfig(max_failures=workers.max_failures),
            callbacks=[NoRetry()],
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
        step = message["step"]
        if step > known_step:
            known_step = step
            if message["share"] >= 1:
                last = {**message, "done": True}
            else:
                yield message
        answers.put(step)
    if ended[0] is not None:
        cause = getattr(ended[0], "controller_failure", None)  # what `NoRetry` raised is there
        raise cause if isinstance(cause, TrialError) else TrialError(in_a_line(ended[0]))
    if last is not None:
        yield last


def _work(loop: Mapping[str, Any]) -> None:
    """What a worker does. Ray Train's controller loads this function, too, and has no use for what it imports."""
    with quick_imports():
        from pipeline.tuning.worker import work

    work(loop)
