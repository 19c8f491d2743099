"""Who makes the shards of a plan: a local pool, a Ray cluster, or the pods of a Kubernetes Indexed Job.

All of them run the same tasks (`preprocess.drivers.schedule`), and all write the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

from pipeline.config.errors import UserError

DriverKind = Literal["local", "ray", "index"]
_KINDS = ("local", "ray", "index")


@dataclass(frozen=True)
class DriverOptions:
    """Which driver, and what the others do not need."""

    kind: DriverKind = "local"
    address: str | None = None
    """Of a Ray cluster; None starts one on this machine."""
    gpus_per_task: float = 0.0
    """Share of a GPU that a Ray task asks for."""
    index: int = 0
    """Of this pod, from 0."""
    num_pods: int = 1


def check_driver(
    kind: str, address: str | None, gpus_per_task: float, index: int | None, num_pods: int | None
) -> DriverOptions:
    """Driver options from the command line's values.

    Raises:
        UserError: an unknown driver, an option that it has no use for, or a pod without its place.
    """
    if kind not in _KINDS:
        raise UserError("--driver", repr(kind), f"one of {', '.join(_KINDS)}")
    if kind != "ray" and (address is not None or gpus_per_task):
        option = "--address" if address is not None else "--gpus-per-task"
        raise UserError(option, f"given with --driver {kind}", "--driver ray")
    if kind != "index":
        if num_pods is not None:
            raise UserError("--num-pods", f"given with --driver {kind}", "--driver index")
        return DriverOptions(cast(DriverKind, kind), address, gpus_per_task)
    if index is None:
        raise UserError("JOB_COMPLETION_INDEX", "not set", "the pod's index", "or give --index")
    if num_pods is None or num_pods < 1:
        found = "missing" if num_pods is None else str(num_pods)
        raise UserError("--num-pods", found, "how many pods the job has (its `completions`)")
    if not 0 <= index < num_pods:
        raise UserError("--index", str(index), f"0 to {num_pods - 1}")
    return DriverOptions("index", index=index, num_pods=num_pods)
