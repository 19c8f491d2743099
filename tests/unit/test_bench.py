"""Figures of benchmarks, and the command that runs all of them, on made-up ones."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import bench
import bench_report
import psutil
import pytest
from figures import Figure, read, spread, write
from ranks import run_on_ranks
from torch.multiprocessing import ProcessRaisedException

WORKING = """
import argparse, pathlib, sys
sys.path.insert(0, {folder!r})
from figures import Figure, write
parser = argparse.ArgumentParser()
parser.add_argument("--json", type=pathlib.Path)
print("measuring")
with open({runs!r}, "a") as runs:
    runs.write("x")
figure = Figure("sorting", "s", [1.0, 2.0, 4.0], {{"bubbles": [8.0]}}, ("reading", [1.0]), "2 s")
write(parser.parse_args().json, [figure])
"""


def test_less_time_is_better() -> None:
    figure = Figure("step", "s", [1.0, 2.0, 9.0], {"peer": [5.0, 6.0, 7.0]}, ("products", [0.5, 1.5, 1.0]))
    assert figure.advantage(figure.peers["peer"]) == 3.0
    assert figure.limit is not None
    assert figure.advantage(figure.limit[1]) == 0.5
    assert "ours is 3.00 times as good" in figure.text()
    assert "ours reaches 50% of this limit" in figure.text()


def test_a_greater_rate_is_better() -> None:
    figure = Figure("loader", "samples/s", [300.0, 200.0, 100.0], {"peer": [50.0, 40.0]}, ("decoder", [250.0]))
    assert figure.advantage(figure.peers["peer"]) == pytest.approx(200 / 45)
    assert figure.limit is not None
    assert figure.advantage(figure.limit[1]) == 0.8


@pytest.mark.parametrize(("unit", "expected"), [("ms", 4.0), ("MiB", 4.0), ("photos/s", 0.25)])
def test_units_decide_what_is_better(unit: str, expected: float) -> None:
    assert Figure("x", unit, [1.0]).advantage([4.0]) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0006123, 0.0007], "0.000656 s (0.000612 to 0.000700)"),
        ([0.5, 0.25, 2.0], "0.500 s (0.250 to 2.000)"),
        ([12345.6], "12,346 s (12,346 to 12,346)"),
        ([0.0], "0.000 s (0.000 to 0.000)"),
        ([-5.0], "-5.000 s (-5.000 to -5.000)"),
    ],
)
def test_small_values_keep_their_digits(values: list[float], expected: str) -> None:
    assert spread(values, "s").strip() == expected


def test_figures_survive_their_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "figures.json"
    figures = [Figure("a", "s", [1.0], {"b": [2.0, 3.0]}, ("c", [0.5]), "less"), Figure("d", "photos/s", [4.0])]
    write(path, figures)
    assert read(path) == figures
    assert json.loads(path.read_text())["machine"]["cores"] >= 1


def fake_benchmarks(tmp_path: Path) -> tuple[bench.Benchmark, ...]:
    """One that writes a figure and counts its runs in `runs`, one that fails, one that writes nothing."""
    scripts = {
        "works": WORKING.format(folder=str(bench.REPOSITORY / "benchmarks"), runs=str(tmp_path / "runs")),
        "fails": "raise SystemExit('no such thing')",
        "forgets": "",
    }
    for name, text in scripts.items():
        (tmp_path / f"{name}.py").write_text(text)
    return tuple(bench.Benchmark(name, (str(tmp_path / f"{name}.py"),), 60) for name in ("fails", "forgets", "works"))


def test_a_failure_is_reported_and_the_others_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "output"
    assert bench.run_all(fake_benchmarks(tmp_path), (), output, "commit", again=False) == 1
    printed = capsys.readouterr().out
    assert "[1/3] fails (about 60 s) … failed: exit code 1 in" in printed
    assert "no such thing" in printed
    assert "[2/3] forgets (about 60 s) … failed: no figures written in" in printed
    assert "[3/3] works (about 60 s) … done in" in printed
    assert "ours is 4.00 times as good" in printed
    document = (output / "bench.md").read_text()
    assert (
        "| sorting | 2.00 s (1.00 to 4.00) | bubbles: 8.00 s (8.00 to 8.00) | 4.00 "
        "| reading: 1.00 s (1.00 to 1.00) | 50% | 2 s |"
    ) in document
    assert "- fails: failed: exit code 1" in document
    joined = json.loads((output / "figures.json").read_text())
    assert [figure["benchmark"] for figure in joined["figures"]] == ["works"]
    assert joined["failures"] == {"fails": "failed: exit code 1", "forgets": "failed: no figures written"}
    assert (output / "bench.png").stat().st_size > 1000


def test_figures_of_the_same_source_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, works = tmp_path / "output", fake_benchmarks(tmp_path)[-1:]
    for state, again, num_runs in (("one", False, 1), ("one", False, 1), ("one", True, 2), ("two", False, 3)):
        assert bench.run_all(works, (), output, state, again) == 0
        assert len((tmp_path / "runs").read_text()) == num_runs
        assert "ours is 4.00 times as good" in capsys.readouterr().out


def test_what_failed_is_run_again(tmp_path: Path) -> None:
    output, benchmarks = tmp_path / "output", fake_benchmarks(tmp_path)
    assert bench.run_all(benchmarks, (), output, "one", again=False) == 1
    for name in ("fails", "forgets"):
        (tmp_path / f"{name}.py").write_text((tmp_path / "works.py").read_text())
    assert bench.run_all(benchmarks, (), output, "one", again=False) == 0
    assert len((tmp_path / "runs").read_text()) == 3
    assert "Not measured" not in (output / "bench.md").read_text()


def test_figures_of_a_run_that_fails_at_its_end_do_not_count(tmp_path: Path) -> None:
    (works,) = fake_benchmarks(tmp_path)[-1:]
    script = Path(works.command[0])
    script.write_text(script.read_text() + "raise SystemExit(3)\n")
    assert bench.run_all((works,), (), tmp_path / "output", "one", again=False) == 1
    assert not (tmp_path / "output" / "one" / "works.json").exists()


def test_what_hangs_is_ended_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script, child = tmp_path / "hangs.py", tmp_path / "child"
    script.write_text(
        "import subprocess, sys, pathlib, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)\n"
        f"pathlib.Path({str(child)!r}).write_text(str(child.pid))\n"
        "time.sleep(600)\n"
    )
    monkeypatch.setattr(bench, "PATIENCE", 0.05)
    failure = bench.measure(bench.Benchmark("hangs", (str(script),), 100), tmp_path)
    assert failure == "failed: no end after 5.0 s"
    wait_until(lambda: not is_running(int(child.read_text())))


def test_a_terminated_bench_leaves_nothing_behind(tmp_path: Path) -> None:
    script, child = tmp_path / "long.py", tmp_path / "child"
    script.write_text(
        "import os, pathlib, time\n"
        f"pathlib.Path({str(child) + '.part'!r}).write_text(str(os.getpid()))\n"
        f"os.rename({str(child) + '.part'!r}, {str(child)!r})\n"
        "time.sleep(600)\n"
    )
    program = (
        f"import sys; sys.path.insert(0, {str(Path(bench.__file__).parent)!r}); import bench\n"
        f"bench.CPU, bench.PREPARATION = (bench.Benchmark('long', ({str(script)!r},), 100),), ()\n"
        "sys.exit(bench.main())\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, "--output", str(tmp_path / "output")])
    wait_until(child.exists)
    process.terminate()
    assert process.wait(30) == 128 + signal.SIGTERM
    wait_until(lambda: not is_running(int(child.read_text())))


def test_a_rank_that_fails_ends_the_others() -> None:
    before = dict(os.environ)
    with pytest.raises(ProcessRaisedException, match="out of disk"):
        run_on_ranks(fail_on_the_second, 2)
    assert os.environ == before


def fail_on_the_second(results: object) -> None:
    if os.environ["RANK"] == "1":
        raise OSError("out of disk")
    time.sleep(600)


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    """A killed process ends when the kernel gets to it, and may then wait for its parent to notice."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_no_benchmark_runs_where_data_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    preparation = [("-c", "raise SystemExit('disk full')")]
    assert bench.run_all(fake_benchmarks(tmp_path), preparation, tmp_path / "output", "one", again=False) == 1
    assert "disk full" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


def test_the_table_fits_its_time() -> None:
    making_data_s = 60
    assert making_data_s + sum(one.budget_s for one in bench.CPU) <= 20 * 60
    for benchmarks in (bench.CPU, bench.GPU):
        assert len({one.name for one in benchmarks}) == len(benchmarks)


def test_rows_for_each_peer() -> None:
    figure = Figure("a", "s", [1.0], {"b": [2.0], "c": [0.5]})
    rows = bench_report.rows(figure)
    assert [row[0] for row in rows] == ["a", ""]
    assert [row[3] for row in rows] == ["2.00", "0.50"]
    assert bench_report.rows(Figure("a", "s", [1.0])) == [("a", "1.00 s (1.00 to 1.00)", "", "", "", "", "")]


def test_no_plot_without_a_ratio(tmp_path: Path) -> None:
    assert not bench_report.plot({"x": [Figure("a", "s", [1.0])]}, tmp_path / "bench.png")
    assert not (tmp_path / "bench.png").exists()


def test_a_gpu_is_asked_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(bench, "has_gpu", lambda: False)
    monkeypatch.setattr("sys.argv", ["bench.py", "--gpu"])
    assert bench.main() == 2
    assert capsys.readouterr().err.startswith("no CUDA device: bench-gpu measures a GPU")
