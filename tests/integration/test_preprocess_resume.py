"""`preprocess shard` as a user runs it: killed at any instant it goes on, with the bytes of a run left alone."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.integration.waiting import wait_for
from tests.unit.test_shard import tree, write_photos

OPTIONS = ("--already-aligned", "--size", "64", "--samples-per-shard", "150", "--val-identities", "0.2")

_started: list[subprocess.Popen[str]] = []


def command(photos: Path, out: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "preprocess.cli", "shard", str(photos), str(out), *OPTIONS, *options]


def run(photos: Path, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.run(
        command(photos, out, *options), capture_output=True, text=True, timeout=100, env=environment, check=False
    )


def start(photos: Path, out: Path) -> subprocess.Popen[str]:
    return start_group(command(photos, out, "--workers", "2"))


def start_group(words: list[str]) -> subprocess.Popen[str]:
    """In a process group of its own, as a terminal would."""
    process = subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # a test run in the background of a shell hands its ignored SIGINT down
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    _started.append(process)
    return process


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """A test that fails leaves no processes to those after it."""
    yield
    while _started:
        process = _started.pop()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        if process.returncode is None:
            process.communicate()


def let_go(process: subprocess.Popen[str]) -> None:
    """Let what `start_and_hold` stopped go on; signals sent meanwhile arrive first."""
    os.killpg(process.pid, signal.SIGCONT)


def workers_of(pid: int) -> list[int]:
    """The pool's processes."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def wait_until_gone(pids: list[int]) -> None:
    for _ in range(100):
        if not any(Path(f"/proc/{pid}").exists() and "Z" not in _state(pid) for pid in pids):
            return
        time.sleep(0.1)
    raise AssertionError(f"still running: {pids}")


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return "Z"


def start_and_hold(photos: Path, out: Path) -> subprocess.Popen[str]:
    """Start, and stop all its processes when another slice or shard is done, so that they cannot finish meanwhile."""

    def finished() -> set[Path]:
        return {*out.glob(".work/*/*.arrow"), *out.glob("commits/*")}

    before = finished()
    process = start(photos, out)
    wait_for(lambda: finished() - before, process, timeout_s=40)
    os.killpg(process.pid, signal.SIGSTOP)
    return process


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few hundred pictures, large enough that a run lasts about two seconds, and bad files among them."""
    root = tmp_path_factory.mktemp("resume") / "photos"
    write_photos(root, photos=5)
    rng = np.random.default_rng(0)
    for number in range(300):
        coarse = rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)
        picture = cv2.resize(coarse, (500, 500), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(root / f"person {number % 5}" / f"large-{number}.jpg"), picture)
    return root


@pytest.fixture(scope="module")
def undisturbed(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], float]:
    """What a run left alone writes with one worker, and how many seconds it took."""
    out = tmp_path_factory.mktemp("expected") / "out"
    started = time.monotonic()
    done = run(photos, out, "--workers", "1")
    duration_s = time.monotonic() - started
    assert done.returncode == 0, done.stderr
    assert "photos found" in done.stdout
    assert "rejected: not_an_image" in done.stdout
    return tree(out), duration_s


@pytest.fixture(scope="module")
def expected(undisturbed: tuple[dict[str, bytes], float]) -> dict[str, bytes]:
    return undisturbed[0]


def test_any_number_of_workers_writes_the_same_bytes(photos: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    assert run(photos, tmp_path / "out", "--workers", "3").returncode == 0
    assert tree(tmp_path / "out") == expected


def test_sigkill_at_random_instants(photos: Path, undisturbed: tuple[dict[str, bytes], float], tmp_path: Path) -> None:
    expected, duration_s = undisturbed
    rng = random.Random(7)
    num_killed = 0
    for _ in range(5):
        process = start(photos, tmp_path / "out")
        try:
            # two workers take more than half of what one takes, so the first is killed for certain; a later one, with
            # less left to do, may finish first
            process.communicate(timeout=duration_s * rng.uniform(0.15, 0.5))
        except subprocess.TimeoutExpired:
            num_killed += 1
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert run(photos, tmp_path / "out").returncode == 0
    assert tree(tmp_path / "out") == expected
    assert num_killed >= 1


def test_killed_parent_takes_its_workers_along(photos: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    process = start_and_hold(photos, tmp_path / "out")
    workers = workers_of(process.pid)
    assert len(workers) == 2
    process.kill()
    let_go(process)
    process.communicate()
    wait_until_gone(workers)
    again = run(photos, tmp_path / "out")
    assert "going on:" in again.stdout
    assert tree(tmp_path / "out") == expected


def test_killed_worker_ends_the_run(photos: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    process = start_and_hold(photos, tmp_path / "out")
    os.kill(workers_of(process.pid)[0], signal.SIGKILL)
    let_go(process)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "a worker process died" in errors
    assert errors.count("\n") == 1
    assert run(photos, tmp_path / "out").returncode == 0
    assert tree(tmp_path / "out") == expected


@pytest.mark.parametrize("is_ctrl_c", [False, True], ids=["sigterm", "ctrl-c"])
def test_asked_to_stop(photos: Path, expected: dict[str, bytes], tmp_path: Path, is_ctrl_c: bool) -> None:
    # a run from the beginning: when its first slice is there, most of the work is still to do
    process = start_and_hold(photos, tmp_path / "out")
    workers = workers_of(process.pid)
    if is_ctrl_c:
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: workers get it too
    else:
        process.terminate()
    let_go(process)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (130 if is_ctrl_c else 143)
    if is_ctrl_c:
        assert "Traceback" not in errors
        assert "goes on where it stopped" in errors
    else:
        assert errors == ""
    wait_until_gone(workers)
    again = run(photos, tmp_path / "out")
    assert "going on:" in again.stdout
    assert tree(tmp_path / "out") == expected


def synth(out: Path) -> list[str]:
    words = ["synth", str(out), "--identities", "60", "--photos", "10", "--workers", "2"]
    return [sys.executable, "-m", "preprocess.cli", *words]


def wait_for_workers(process: subprocess.Popen[str]) -> list[int]:
    """The pool's two processes, as soon as they exist: they are still importing."""
    wait_for(lambda: len(workers_of(process.pid)) == 2, process, timeout_s=40)
    return workers_of(process.pid)


@pytest.mark.parametrize("name", ["shard", "synth"])
def test_ctrl_c_while_workers_start_is_one_line(photos: Path, tmp_path: Path, name: str) -> None:
    words = command(photos, tmp_path / "out", "--workers", "2") if name == "shard" else synth(tmp_path)
    for delay_s in (0.05, 0.15, 0.3):
        process = start_group(words)
        workers = wait_for_workers(process)
        time.sleep(delay_s)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 130, errors
        assert errors.splitlines()[-1] == "interrupted; the same command goes on where it stopped"
        assert "Traceback" not in errors
        wait_until_gone(workers)


def test_killed_renderer_takes_its_workers_along_and_goes_on(tmp_path: Path) -> None:
    process = start_group(synth(tmp_path / "killed"))
    workers = wait_for_workers(process)
    wait_for(lambda: any((tmp_path / "killed").glob("*/0003.jpg")), process)
    process.kill()
    process.communicate()
    wait_until_gone(workers)
    for out in ("killed", "whole"):
        done = subprocess.run(synth(tmp_path / out), capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == 0, done.stderr
    assert tree(tmp_path / "killed") == tree(tmp_path / "whole")


def test_a_second_run_at_the_same_time_is_refused(photos: Path, tmp_path: Path) -> None:
    process = start_and_hold(photos, tmp_path / "out")
    try:
        second = run(photos, tmp_path / "out")
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert second.returncode == 1
    assert "another run is working on it" in second.stderr


def test_repeating_and_changing(photos: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "out"
    for name, content in expected.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(content)
    again = run(photos, out)
    assert (again.returncode, "is finished already" in again.stdout) == (0, True)
    other = run(photos, out, "--quality", "80")
    assert other.returncode == 2
    assert other.stderr.count("\n") == 1
    assert "was begun with --quality = 95; expected 80" in other.stderr
    (out / "train" / "train-000001.tar").unlink()
    (out / "dataset.json").unlink()
    few = run(photos, out, "--max-rejects", "0.001")
    assert few.returncode == 3
    assert "of the photos were rejected; expected at most 0.1% (--max-rejects)" in few.stderr
    assert not (out / "dataset.json").exists()
    assert run(photos, out).returncode == 0
    assert tree(out) == expected


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (("nowhere", "out"), "nowhere: no such file or folder"),
        (("empty", "out"), "empty: no photos"),
        (("foreign", "foreign2"), "is not empty and not a data set"),
        (("foreign", "foreign/out"), "lies inside the photos' folder"),
        (("foreign", "foreign2/photo.jpg"), "is a file"),
        (("foreign", "foreign2/photo.jpg/out"), "cannot be made (Not a directory)"),
        (("foreign", "out", "--size", "7"), "--size: 7; expected greater than or equal to 16"),
        (("foreign", "out", "--face", "nearest"), "--face: 'nearest'; expected 'largest'"),
        (("foreign", "out", "--already-aligned"), "no usable photo in the split 'train' (1 corrupt)"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, options: tuple[str, ...], found: str) -> None:
    (tmp_path / "empty").mkdir()
    for folder in ("foreign/a", "foreign2"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "photo.jpg").write_bytes(b"\xff\xd8\xff and no more")
    source, out, *rest = options
    line = [sys.executable, "-m", "preprocess.cli", "shard", source, out, "--workers", "1", *rest]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, cwd=tmp_path, check=False)
    assert done.returncode == (3 if "no usable photo" in found else 2)
    assert found in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_verify_and_stats_commands(expected: dict[str, bytes], tmp_path: Path) -> None:
    for name, content in expected.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)

    def call(name: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "preprocess.cli", name, str(tmp_path)]
        return subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)

    assert (call("verify").returncode, "no faults" in call("verify").stdout) == (0, True)
    assert "not_an_image" in call("stats").stdout
    (tmp_path / "train" / "train-000000.idx").unlink()
    faulty = call("verify")
    assert faulty.returncode == 1
    assert "train-000000: idx missing or unreadable" in faulty.stdout
