"""A local pool, a Ray cluster and the pods of an Indexed Job write the same bytes, whoever is killed meanwhile."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest

from pipeline.config.errors import UserError
from preprocess.drivers import DriverOptions, check_driver
from preprocess.drivers.ray_cluster import _look
from preprocess.plan import environment
from preprocess.sources.store import PhotoFiles
from tests.integration.waiting import wait_for

OPTIONS = ["--already-aligned", "--size", "64", "--samples-per-shard", "60", "--val-identities", "0.3"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures large enough that a slice takes a while, and a file that is none."""
    root = tmp_path_factory.mktemp("drivers") / "photos"
    rng = np.random.default_rng(0)
    for number in range(400):
        coarse = rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)
        path = root / f"person {number % 7}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), cv2.resize(coarse, (700, 700), interpolation=cv2.INTER_CUBIC))
    (root / "person 0" / "notes.jpg").write_text("none")
    return root


def start(photos: Path, out: Path, *options: str, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "preprocess.cli", "shard", str(photos), str(out), *OPTIONS, *options]
    # a small store for objects: Ray's warnings about /dev/shm are not what is tested here
    environment = {"RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE": "1", "RAY_USAGE_STATS_ENABLED": "0", **environment}
    return subprocess.Popen(
        command,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # a test run in the background of a shell hands its ignored SIGINT down
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    text, _ = process.communicate(timeout=150)
    assert process.returncode == code, text
    return text


def files(out: Path) -> dict[str, bytes]:
    found = {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
    assert not [name for name in found if name.startswith(".work")]
    return found


@pytest.fixture(scope="module")
def expected(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("expected") / "out"
    finish(start(photos, out, "--workers", "2"))
    return files(out)


def progress(out: Path) -> int:
    return len([*out.glob(".work/*/*.arrow"), *out.glob("commits/*")])


def kill_a_task(driver: subprocess.Popen[str]) -> bool:
    """Kill a Ray worker in the middle of a slice; between two tasks there may be none."""
    for child in psutil.Process(driver.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.cmdline()[:1] == ["ray::slice_task"]:
                child.kill()
                return True
    return False


def test_a_killed_ray_worker_loses_nothing(photos: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(photos, out, "--driver", "ray", "--workers", "2")
    wait_for(lambda: progress(out) >= 2, process)
    wait_for(lambda: kill_a_task(process), process)
    finish(process)
    assert files(out) == expected


def test_a_killed_ray_driver_goes_on(photos: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(photos, out, "--driver", "ray", "--workers", "2")
    wait_for(lambda: progress(out) >= 3, process)
    process.send_signal(signal.SIGINT)
    text = finish(process, 130)
    assert "the same command goes on where it stopped" in text
    assert not (out / "dataset.json").exists()
    text = finish(start(photos, out, "--workers", "2"))
    assert re.search(r"going on: \d+ of 401 photos were done before", text)
    assert files(out) == expected


def test_a_killed_pod_loses_nothing(photos: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "out"
    pods = [
        start(photos, out, "--driver", "index", "--num-pods", "2", "--workers", "1", JOB_COMPLETION_INDEX=str(index))
        for index in range(2)
    ]
    wait_for(lambda: progress(out) >= 2, pods[0])
    os.killpg(pods[0].pid, signal.SIGKILL)
    pods[0].communicate()
    text = finish(pods[1])
    assert re.search(r"pod 1: done; \d of \d shards are left to other pods", text)
    assert not (out / "dataset.json").exists()
    text = finish(start(photos, out, "--driver", "index", "--num-pods", "2", "--workers", "1", "--index", "0"))
    assert "photos found" in text
    assert files(out) == expected
    # a pod that comes late finds everything done
    text = finish(start(photos, out, "--driver", "index", "--num-pods", "2", "--index", "1"))
    assert "is finished already" in text
    assert files(out) == expected


def test_a_node_with_other_libraries_is_named(photos: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    mark.write_text("plan")
    versions = environment() | {"opencv": "4.0"}
    assert _look(mark, "plan", PhotoFiles(photos), "person 0/0.jpg", None, versions).startswith("the same opencv as")


def test_a_node_that_lacks_something_names_it(photos: Path, tmp_path: Path) -> None:
    mark = tmp_path / "out" / ".work" / "mark"
    store, here = PhotoFiles(photos), environment()
    assert _look(mark, "plan", store, "person 0/0.jpg", None, here) == str(tmp_path / "out")
    mark.parent.mkdir(parents=True)
    mark.write_text("another plan")
    assert _look(mark, "plan", store, "person 0/0.jpg", None, here) == str(tmp_path / "out")
    mark.write_text("plan")
    assert _look(mark, "plan", store, "person 0/0.jpg", None, here) == ""
    assert _look(mark, "plan", store, "person 9/0.jpg", None, here) == "the photos (person 9/0.jpg)"
    assert _look(mark, "plan", store, "person 0/0.jpg", tmp_path / "w.onnx", here) == str(tmp_path / "w.onnx")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("dask", None, 0.0, None, None), "'dask'; expected one of local, ray, index"),
        (("local", "auto", 0.0, None, None), "--address: given with --driver local"),
        (("index", None, 0.5, 0, 2), "--gpus-per-task: given with --driver index"),
        (("ray", None, 0.0, None, 3), "--num-pods: given with --driver ray"),
        (("index", None, 0.0, None, 3), "JOB_COMPLETION_INDEX: not set"),
        (("index", None, 0.0, 1, None), "--num-pods: missing"),
        (("index", None, 0.0, 3, 3), "--index: 3; expected 0 to 2"),
    ],
)
def test_wrong_options(arguments: tuple[str, str | None, float, int | None, int | None], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        check_driver(*arguments)


def test_a_pods_index_means_nothing_to_other_drivers() -> None:
    assert check_driver("local", None, 0.0, 5, None) == DriverOptions()
