"""The work on a Ray cluster. Ray is imported when the driver is used.

Tasks are those of the local pool. A task whose worker process or node dies is started again elsewhere, and what it had
made is found or made again, with the same bytes. All nodes see the photos and OUT under the same paths.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from pipeline.atomic_write import write_atomically
from pipeline.config.errors import TemporaryError, UserError
from pipeline.ray_cluster import connect
from preprocess.drivers.schedule import OnPhotos, run_tasks, unfinished
from preprocess.plan import Plan, environment
from preprocess.shard import ShardContext
from preprocess.sources.store import PhotoStore
from preprocess.storage import GOES_ON, storage_error, work_folder
from preprocess.workers import stop_between_tasks

_MAX_RETRIES = 10
_FIRST_WORD_S = 15.0
"""Without room for a task, until it is said: a worker may take several seconds to start."""
_NEXT_WORD_S = 60.0

logger = logging.getLogger(__name__)


def run_ray(
    plan: Plan,
    photos: PhotoStore,
    out: Path,
    weights: Path | None,
    num_workers: int,
    on_photos: OnPhotos,
    *,
    address: str | None,
    gpus_per_task: float,
) -> None:
    """Make all shards that are not committed yet.

    Args:
        plan: the work.
        photos: where the photos' bytes come from, on every node.
        out: the data set, on a file system that every node has.
        weights: the detector's weight file, if it needs one, on every node.
        num_workers: CPUs of a cluster started here.
        on_photos: see there.
        address: of a running cluster, `auto` or HOST:PORT; None starts one on this machine.
        gpus_per_task: share of a GPU that a task asks for.

    Raises:
        UserError: there is no such cluster, a node does not see `out` or the photos, or the data set cannot be
            written; `TemporaryError`: a task failed too often, or storage fails.
    """
    todo = unfinished(plan, out)
    if not todo:
        return
    _connect(address, num_workers, gpus_per_task)
    import ray

    try:
        _check_nodes(plan, photos, out, weights)
        context = ShardContext(photos, out.resolve(), plan.options, plan.hash)
        needs = {"CPU": 1.0} | ({"GPU": gpus_per_task} if gpus_per_task else {})
        _wait_for_room(needs)
        num_cpus = int(ray.cluster_resources().get("CPU", 1))
        pool = _RayPool(needs)
        try:
            with stop_between_tasks(ray.exceptions.RayError) as ask:
                run_tasks(pool, plan, todo, context, weights, 3 * num_cpus, on_photos, ask)
        except UserError:
            raise
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, OSError):
                raise storage_error(out, "cannot be written", cause, remedy=GOES_ON) from None
            raise
        except ray.exceptions.RayError as error:
            reason = str(error).splitlines()[0]
            remedy = "repeat the same command, it goes on where it stopped"
            raise TemporaryError(out, f"a task failed {_MAX_RETRIES + 1} times ({reason})", remedy=remedy) from None
    finally:
        ray.shutdown()


class _RayPool:
    """See `schedule.Pool`."""

    def __init__(self, needs: Mapping[str, float]) -> None:
        import ray

        # retried where a worker or a node died, not where the task itself raised
        self._options = _task_options(needs) | {"max_retries": _MAX_RETRIES, "retry_exceptions": False}
        self._remote: dict[Callable[..., None], Any] = {}
        self._make = ray.remote

    def submit(self, task: Callable[..., None], /, *arguments: object) -> Future[None]:
        if task not in self._remote:
            self._remote[task] = self._make(**self._options)(task)
        future: Future[None] = self._remote[task].remote(*arguments).future()
        return future


def _task_options(needs: Mapping[str, float]) -> dict[str, Any]:
    return {"num_cpus": needs["CPU"], "num_gpus": needs.get("GPU", 0)}


def _wait_for_room(needs: Mapping[str, float]) -> None:
    """Wait until a task that does nothing has run; now and then, say what tasks ask for and what there is."""
    import ray

    probe = ray.remote(**_task_options(needs))(_do_nothing).remote()
    wait_s = _FIRST_WORD_S
    while not ray.wait([probe], timeout=wait_s)[0]:
        free, there = ray.available_resources(), ray.cluster_resources()
        asked = " and ".join(f"{amount:g} {name}" for name, amount in needs.items())
        found = " and ".join(f"{free.get(name, 0):g} of {there.get(name, 0):g} {name}" for name in needs)
        logger.warning("waiting for the cluster: a task asks for %s of one node; free are %s", asked, found)
        wait_s = _NEXT_WORD_S
    ray.get(probe)


def _do_nothing() -> None:
    pass


def _connect(address: str | None, num_workers: int, gpus_per_task: float) -> None:
    local: dict[str, Any] = {"num_cpus": num_workers, "include_dashboard": False}
    if gpus_per_task:
        local["num_gpus"] = 1
    connect(address, **local)
    import ray

    if gpus_per_task and not ray.cluster_resources().get("GPU"):
        ray.shutdown()
        raise UserError("--gpus-per-task", f"{gpus_per_task:g}, but the cluster has no GPU", "0")


def _check_nodes(plan: Plan, photos: PhotoStore, out: Path, weights: Path | None) -> None:
    """Ask every node whether it sees what the tasks will need."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    mark = work_folder(out.resolve()) / "seen-by-all-nodes"
    write_atomically(mark, plan.hash.encode())
    source = plan.rows["source"][0].as_py()
    look = ray.remote(num_cpus=0, max_retries=2)(_look)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    answers = [
        look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)).remote(
            mark, plan.hash, photos, source, weights, dict(plan.versions)
        )
        for node in nodes
    ]
    for node, answer in zip(nodes, answers, strict=True):
        missing = ray.get(answer)
        if missing:
            raise UserError(
                f"node {node['NodeManagerHostname']}",
                f"does not see {missing}",
                "photos, weights, OUT under the same path on all nodes, and the same libraries and processor features",
            )


def _look(
    mark: Path, content: str, photos: PhotoStore, source: str, weights: Path | None, versions: Mapping[str, str]
) -> str:
    """On a node: what it lacks, or an empty string."""
    if not mark.is_file() or mark.read_text() != content:
        return str(mark.parent.parent)
    if photos.stamp(source) is None:
        return f"the photos ({source})"
    if weights is not None and not weights.is_file():
        return str(weights)
    here = environment()
    other = [name for name in sorted({*versions, *here}) if versions.get(name) != here.get(name)]
    return f"the same {other[0]} as this machine: other bytes might come of it" if other else ""
