"""The Ray cluster that a search runs on: one started here, or one that is there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.config.errors import UserError
from pipeline.config.search import WorkersConfig
from pipeline.ray_cluster import connect

_ENVIRONMENT = {
    # processes of a trial stay where the search was started: recipes have paths relative to that
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # the dashboard lists Ray Train's runs
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",
    # a process for each trial that would tell workers of a node that leaves, who would do nothing about it
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # 2 s by default: how late a trial's begin and end are noticed
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # no tables of Tune's beside ours
    "RAY_AIR_NEW_OUTPUT": "0",
    # Ctrl-C ends the search at once; what it would save is saved all the time
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}


@contextmanager
def cluster(address: str | None, dashboard_host: str, dashboard_port: int) -> Iterator[str]:
    """Connect while the block runs; gives the dashboard's URL, empty where there is none.

    A cluster that is started here asks for a token on its dashboard and wherever else it listens: whoever reaches an
    open one runs code.

    Args:
        address: of a running cluster, `auto` or HOST:PORT; None starts one on this machine.
        dashboard_host: address that the dashboard of a cluster started here listens on.
        dashboard_port: its port; another if that is taken.

    Raises:
        UserError: no such cluster, or none can be started.
    """
    os.environ.update(_ENVIRONMENT)
    if address is None:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    import ray

    url = connect(
        address,
        {"worker_process_setup_hook": _know_own_cluster},
        include_dashboard=True,
        dashboard_host=dashboard_host,
        dashboard_port=dashboard_port,
    )
    try:
        yield f"http://{url}" if url else ""
    finally:
        ray.shutdown()


def _know_own_cluster() -> None:
    """In each process of the cluster: name it to Ray's own state API.

    Ray Train asks that whether a trial's controller still lives, and frees its CPUs when it does not. Without a name it
    asks the cluster that was last started on the machine with `ray start`, which may be dead: the question then ends in
    an error, and the CPUs of a trial that was stopped are never free again.
    """
    import ray

    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address


def num_trials_at_a_time(workers: WorkersConfig, on_one_node: bool) -> int:
    """How many trials the cluster has room for now.

    Args:
        workers: of a trial.
        on_one_node: whether a trial's workers have to stand on one node.

    Raises:
        UserError: not for one.
    """
    import ray

    needs = {"CPU": workers.cpus} | ({"GPU": workers.gpus} if workers.gpus else {})
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    rooms = [int(min(node.get(name, 0) // amount for name, amount in needs.items())) for node in nodes]
    found = sum(room // workers.count for room in rooms) if on_one_node else sum(rooms) // workers.count
    if found < 1:
        asked = " and ".join(f"{amount:g} {name}" for name, amount in needs.items())
        where = "one node" if on_one_node else "the cluster"
        room = max(rooms, default=0) if on_one_node else sum(rooms)
        raise UserError(
            "workers", f"{where} has room for {room} workers of {asked}", f"{workers.count}, as many as a trial has"
        )
    return found
