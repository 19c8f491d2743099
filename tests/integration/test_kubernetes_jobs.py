"""The commands of the manifests as processes, with the environment that Kubernetes and its controllers set."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.checkpoint import latest_checkpoint, read_info
from tests.datasets import make_dataset
from tests.integration import training
from tests.integration.test_faults import kill_tree, last_step, ranks_of, wait_until
from tests.k8s.manifests import has_kubectl, of_kind, pods, render_overlay, words

pytestmark = [
    pytest.mark.skipif(not has_kubectl(), reason="kubectl renders the manifests, and is not installed"),
    pytest.mark.timeout(600),
]

PREEMPTED = 75
GRACE_PERIOD_S = 3.0  # that of the manifests, shortened


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data"), num_samples=400, num_identities=13, crop_px=training.CROP_PX)


def container_of(overlay: str, kind: str, name: str) -> dict[str, Any]:
    """The container of the object of a kind whose name ends so."""
    manifests = render_overlay(overlay)
    found = [pod for pod in pods(manifests) if pod.owner["kind"] == kind and pod.owner["metadata"]["name"] == name]
    container: dict[str, Any] = found[0].containers[0]
    return container


def command_of(container: dict[str, Any], **places: str) -> list[str]:
    """Its words, with paths of the pod (`data="…"` for /data) replaced by those here."""
    found = []
    for word in words(container):
        for name, place in places.items():
            if word.startswith(f"/{name}"):
                word = place + word.removeprefix(f"/{name}")
        found.append(word)
    return found


def values_of(container: dict[str, Any]) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}


@contextmanager
def pod(command: list[str], log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A container's processes; killed at the end."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # python, torchrun and preprocess of this environment
    with open(log, "ab") as file:
        process = subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": str(training.REPOSITORY), "PATH": path, **environment},
            cwd=training.REPOSITORY,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        kill_tree(process)
        process.wait()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port: int = listener.getsockname()[1]
        return port


def wait_for_end(process: subprocess.Popen[bytes], log: Path, timeout_s: float = 200) -> int:
    try:
        return process.wait(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"no end after {timeout_s:.0f} s:\n{log.read_text()}") from None


def test_a_preempted_node_ends_the_set_and_the_next_goes_on(tmp_path: Path, data: Path) -> None:
    output = tmp_path / "run"
    recipe = training.write_recipe(tmp_path / "train.yaml", data, output, epochs=4)
    container = container_of("kueue", "JobSet", "facemill-training")
    values = values_of(container)
    assert values["PET_NNODES"] == "2"

    @contextmanager
    def nodes(name: str) -> Iterator[list[tuple[subprocess.Popen[bytes], Path]]]:
        port = str(free_port())
        with ExitStack() as stack:
            started = []
            for index in range(2):
                log = tmp_path / f"{name}-{index}"
                here = {
                    **values,
                    "PET_MASTER_ADDR": "localhost",
                    "PET_MASTER_PORT": port,
                    "PET_NPROC_PER_NODE": "1",
                    "PET_NODE_RANK": str(index),
                    "JOB_COMPLETION_INDEX": str(index),
                }
                command = command_of(container, recipes=str(recipe.parent))
                started.append((stack.enter_context(pod(command, log, **here)), log))
            yield started

    with nodes("first") as started:
        wait_until(lambda: last_step(output) >= 5, started[0][1])
        started[1][0].send_signal(signal.SIGTERM)
        # neither waits for the other: torchrun's own patience with a node that has left is five minutes
        assert [wait_for_end(process, log, 100) for process, log in started] == [PREEMPTED, PREEMPTED]
    saved = latest_checkpoint(output / "checkpoints")
    assert saved is not None
    assert read_info(saved).step == last_step(output) < 25
    with nodes("second") as started:
        assert [wait_for_end(process, log) for process, log in started] == [0, 0]
        assert f"resumed at step {read_info(saved).step}" in started[0][1].read_text()
    assert sorted(training.losses(output)) == list(range(1, 26))


@pytest.mark.slow
def test_a_pod_that_outstays_its_grace_period_loses_what_was_not_saved(tmp_path: Path, data: Path) -> None:
    output, log = tmp_path / "run", tmp_path / "log"
    recipe = training.write_recipe(tmp_path / "train.yaml", data, output, epochs=4)
    container = container_of("single-node-cpu", "Job", "facemill-training")
    command, values = command_of(container, recipes=str(recipe.parent)), values_of(container)
    with pod(command, log, **values) as process:
        wait_until(lambda: (output / "checkpoints" / "latest").exists() and last_step(output) >= 5, log)
        ranks_of(process)[1].suspend()  # stuck, as on a file system that does not answer
        process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=GRACE_PERIOD_S)
        saved = latest_checkpoint(output / "checkpoints")
        assert saved is not None
        kill_tree(process)  # SIGKILL to all processes of the container
    with pod(command, log, **values) as process:
        assert wait_for_end(process, log) == 0, log.read_text()
    assert f"resumed at step {read_info_step(saved)}" in log.read_text()
    assert sorted(training.losses(output)) == list(range(1, 26))


def read_info_step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


@pytest.mark.slow
def test_elastic_nodes_leave_in_order_and_come_back(tmp_path: Path, data: Path) -> None:
    output = tmp_path / "run"
    recipe = training.write_recipe(tmp_path / "train.yaml", data, output, epochs=60)
    (job,) = of_kind(render_overlay("spot"), "PyTorchJob")
    container = container_of("spot", "PyTorchJob", "facemill-training")
    store_command = command_of(container_of("spot", "Deployment", "facemill-rendezvous"))
    port = str(free_port())
    policy = job["spec"]["elasticPolicy"]
    given = {each["key"]: each["value"] for each in policy["rdzvConf"]}
    patience = {"last_call_timeout": "1", "keep_alive_interval": "1", "keep_alive_max_attempt": "3"}
    environment = {  # as its operator sets it
        **values_of(container),
        "PET_NNODES": f"{policy['minReplicas']}:{policy['maxReplicas']}",
        "PET_NPROC_PER_NODE": "1",
        "PET_MAX_RESTARTS": str(policy["maxRestarts"]),
        "PET_RDZV_BACKEND": policy["rdzvBackend"],
        "PET_RDZV_ENDPOINT": f"localhost:{port}",
        "PET_RDZV_ID": policy["rdzvId"],
        "PET_RDZV_CONF": ",".join(f"{key}={value}" for key, value in {**given, **patience}.items()),
        "PET_LOCAL_ADDR": "127.0.0.1",
    }
    command = command_of(container, recipes=str(recipe.parent))
    logs = [tmp_path / f"pod{number}" for number in range(4)]
    store_command[store_command.index("--port") + 1] = port

    def said(text: str) -> Callable[[], bool]:
        return lambda: any(text in log.read_text() for log in logs if log.exists())

    with pod(store_command, tmp_path / "store"):
        wait_until(lambda: "port" in (tmp_path / "store").read_text(), tmp_path / "store")
        with pod(command, logs[0], **environment) as first, pod(command, logs[1], **environment) as second:
            wait_until(lambda: last_step(output) >= 5, logs[0])
            second.send_signal(signal.SIGTERM)
            assert wait_for_end(second, logs[1]) == PREEMPTED
            wait_until(said("2 → 1 ranks"), logs[0])  # without being started anew from outside
            assert first.poll() is None
            with pod(command, logs[2], **environment) as third:
                wait_until(said("1 → 2 ranks"), logs[2])
                step = last_step(output)
                wait_until(lambda: last_step(output) > step + 2, logs[2])
                for process in (first, third):
                    process.send_signal(signal.SIGTERM)
                assert {wait_for_end(first, logs[0]), wait_for_end(third, logs[2])} == {PREEMPTED}
        # all have left, none has closed the meeting place
        step = last_step(output)
        with pod(command, logs[3], **environment) as fourth:
            wait_until(lambda: last_step(output) > step + 2, logs[3])
            fourth.send_signal(signal.SIGTERM)
            assert wait_for_end(fourth, logs[3]) == PREEMPTED
    assert sorted(training.losses(output)) == list(range(1, last_step(output) + 1))


@pytest.mark.slow
def test_the_steps_of_one_node_from_photos_to_a_report(tmp_path: Path) -> None:
    """What k8s/README.md applies one after the other, on fewer people; a sharding pod is killed and comes back."""
    manifests = render_overlay("single-node-cpu")
    places = {"data": str(tmp_path / "data"), "runs": str(tmp_path / "runs"), "recipes": str(tmp_path)}
    (recipe,) = of_kind(manifests, "ConfigMap")
    text = recipe["data"]["train.yaml"].replace("epochs: 12", "epochs: 1")
    for name, place in places.items():
        text = text.replace(f": /{name}/", f": {place}/")
    (tmp_path / "train.yaml").write_text(text)

    def step(name: str) -> tuple[list[str], Path, dict[str, str]]:
        container = container_of("single-node-cpu", "Job", f"facemill-{name}")
        return command_of(container, **places), tmp_path / f"{name}.log", values_of({"env": [], **container})

    command, log, _ = step("photos")
    command[command.index("--identities") + 1] = "24"
    with pod(command, log) as photos:
        assert wait_for_end(photos, log) == 0, log.read_text()
    command, log, _ = step("sharding")
    with pod(command, log, JOB_COMPLETION_INDEX="0") as first, pod(command, log, JOB_COMPLETION_INDEX="1") as second:
        wait_until(lambda: psutil.pid_exists(first.pid) and any((tmp_path / "data/set/.work").glob("*/*.arrow")), log)
        kill_tree(first)
        assert wait_for_end(second, log) == 0, log.read_text()
    with pod(command, log, JOB_COMPLETION_INDEX="0") as again:
        assert wait_for_end(again, log) == 0, log.read_text()
    assert (tmp_path / "data" / "set" / "dataset.json").is_file()
    for name in ("training", "evaluation"):
        command, log, values = step(name)
        with pod(command, log, **values) as process:
            assert wait_for_end(process, log, 400) == 0, log.read_text()
    assert (tmp_path / "runs" / "first" / "evaluation" / "report.html").is_file()
