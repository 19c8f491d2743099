"""`preprocess shard --driver ray`: a wrong address is refused at once; a full cluster is not waited for in silence."""

from __future__ import annotations

import logging
import re
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from pipeline.config.errors import UserError
from pipeline.ray_cluster import check_address
from preprocess.cli import app
from preprocess.drivers import ray_cluster
from preprocess.drivers.ray_cluster import _wait_for_room
from tests.datasets import random_image


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that is taken, and at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.mark.parametrize("address", ["", "head", "head:", ":6379", "head:many", "head:99999999", "ray://head"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"--address: {address!r}; expected auto, or HOST:PORT")):
        check_address(address)


def test_a_port_without_a_listener_is_refused_before_ray_is_asked(closed_port: int) -> None:
    for address in (f"127.0.0.1:{closed_port}", f"ray://127.0.0.1:{closed_port}"):
        with pytest.raises(UserError, match=f"{address}: Connection refused.*ray start --head"):
            check_address(address)


def test_hosts_that_do_not_answer_or_do_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail_with(error: OSError) -> None:
        def connect(address: tuple[str, int], timeout: float) -> socket.socket:
            assert address == ("head", 6379)
            assert timeout <= 10
            raise error

        monkeypatch.setattr(socket, "create_connection", connect)

    fail_with(TimeoutError("timed out"))
    with pytest.raises(UserError, match="head:6379: no answer"):
        check_address("head:6379")
    fail_with(socket.gaierror(-2, "Name or service not known"))
    with pytest.raises(UserError, match="head:6379: Name or service not known"):
        check_address("head:6379")


def test_listeners_and_auto_pass() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        check_address(f"127.0.0.1:{server.getsockname()[1]}")
    check_address("auto")


def test_the_command_says_it_in_one_line(tmp_path: Path, closed_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos" / "a").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "photos" / "a" / "1.jpg"), random_image(np.random.default_rng(0), 32))
    monkeypatch.setitem(sys.modules, "ray", None)  # importing it would fail
    command = ["shard", str(tmp_path / "photos"), str(tmp_path / "out"), "--already-aligned", "--size", "32"]
    result = CliRunner().invoke(app, [*command, "--driver", "ray", "--address", f"127.0.0.1:{closed_port}"])
    assert isinstance(result.exception, UserError)
    assert "Connection refused" in str(result.exception)


def test_a_cluster_without_a_free_cpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setenv("RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE", "1")
    monkeypatch.setattr(ray_cluster, "_FIRST_WORD_S", 0.5)
    monkeypatch.setattr(ray_cluster, "_NEXT_WORD_S", 0.5)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    said = threading.Event()

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            # what is free is known to the cluster's head a moment after it was taken
            if "a task asks for 1 CPU of one node; free are 0 of 1 CPU" in record.getMessage():
                said.set()

    class Squatter:
        def ready(self) -> None: ...

    listener = Listener()
    logging.getLogger(ray_cluster.__name__).addHandler(listener)
    ray.init("local", num_cpus=1, num_gpus=0, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        squatter = ray.remote(num_cpus=1)(Squatter).remote()
        ray.get(squatter.ready.remote())
        waiting = threading.Thread(target=_wait_for_room, args=({"CPU": 1.0},), daemon=True)
        waiting.start()
        assert said.wait(60)
        assert waiting.is_alive()
        ray.kill(squatter)
        waiting.join(60)
        assert not waiting.is_alive()
    finally:
        logging.getLogger(ray_cluster.__name__).removeHandler(listener)
        ray.shutdown()
