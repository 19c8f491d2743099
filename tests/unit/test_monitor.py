"""Where metrics go. Weights & Biases and MLflow are stood in for by modules that write down how they are called."""

from __future__ import annotations

import importlib
import json
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.errors import UserError
from pipeline.config.load import validate_config
from pipeline.config.schema import Config
from pipeline.monitor.monitor import Monitor
from pipeline.monitor.sinks import check_sinks

CALLS = "calls.jsonl"
_RECORDER = """
import json, pathlib
def note(*call):
    with open(pathlib.Path(__file__).parent / "calls.jsonl", "a") as file:
        file.write(json.dumps(call) + "\\n")
"""
_WANDB = (
    _RECORDER
    + """
class Run:
    def __init__(self, id): self.id = id
    def log(self, data, step):
        if data["loss"] < 0: raise ConnectionError("server is gone")
        note("log", data, step)
    def finish(self, exit_code): note("finish", exit_code)
def init(*, project, entity, name, tags, id, resume, dir, config):
    if project == "refused": raise RuntimeError("no such project")
    note("init", project, id, resume, config["seed"])
    return Run(id or "made-up")
"""
)
_MLFLOW = (
    _RECORDER
    + """
from types import SimpleNamespace
def set_tracking_uri(uri): note("uri", uri)
def set_experiment(name): note("experiment", name)
def start_run(run_id=None, run_name=None):
    note("start", run_id, run_name)
    return SimpleNamespace(info=SimpleNamespace(run_id=run_id or "made-up"))
def log_dict(values, name): note("dict", values["seed"], name)
def log_metrics(values, step, synchronous): note("metrics", values, step, synchronous)
def end_run(status): note("end", status)
"""
)


@pytest.fixture
def trackers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with both stand-ins on the path."""
    folder = tmp_path / "trackers"
    folder.mkdir()
    (folder / "wandb.py").write_text(_WANDB)
    (folder / "mlflow.py").write_text(_MLFLOW)
    monkeypatch.syspath_prepend(folder)
    importlib.invalidate_caches()
    yield folder
    for name in ("wandb", "mlflow"):
        sys.modules.pop(name, None)


def config_of(tmp_path: Path, **monitor: Any) -> Config:
    output = tmp_path / "run"
    output.mkdir(exist_ok=True)
    return validate_config(
        {
            "output": str(output),
            "seed": 5,
            "data": {"path": "data"},
            "training": {"epochs": 1, "global_batch": 4, "local_batch": 2},
            "monitor": {"tensorboard": False, **monitor},
        },
        where="test",
    )


def calls(folder: Path) -> list[list[Any]]:
    return [json.loads(line) for line in (folder / CALLS).read_text().splitlines()]


def record(step: int, loss: float = 1.0) -> dict[str, float]:
    return {"step": step, "samples": 4 * step, "loss": loss, "softmax/accuracy": 0.5}


def test_wandb_goes_on_with_the_same_run(tmp_path: Path, trackers: Path) -> None:
    config = config_of(tmp_path, wandb={"project": "faces"})
    check_sinks(config.monitor)
    with Monitor(config, 100, samples=0, step=0, is_writer=True) as monitor:
        monitor.record(record(1))
    with pytest.raises(KeyboardInterrupt), Monitor(config, 100, samples=4, step=1, is_writer=True):
        raise KeyboardInterrupt
    assert calls(trackers) == [
        ["init", "faces", None, "allow", 5],
        ["log", record(1), 1],
        ["finish", 0],
        ["init", "faces", "made-up", "allow", 5],
        ["finish", 1],
    ]


def test_mlflow_goes_on_with_the_same_run(tmp_path: Path, trackers: Path) -> None:
    config = config_of(tmp_path, mlflow={"tracking_uri": "http://there", "experiment": "faces", "name": "first"})
    check_sinks(config.monitor)
    for _ in range(2):
        with Monitor(config, 100, samples=0, step=0, is_writer=True) as monitor:
            monitor.record(record(1))
    made = calls(trackers)
    assert made[2:6] == [
        ["start", None, "first"],
        ["dict", 5, "config.json"],
        ["metrics", record(1), 1, False],
        ["end", "FINISHED"],
    ]
    assert made[8] == ["start", "made-up", None]


def test_a_package_that_is_missing_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if "site-packages" not in entry])
    for section, package in (
        ({"wandb": {"project": "faces"}}, "wandb"),
        ({"mlflow": {"tracking_uri": "there", "experiment": "faces"}}, "mlflow"),
    ):
        with pytest.raises(UserError, match=f"the package {package} is not installed; pip install {package}"):
            check_sinks(config_of(tmp_path, **section).monitor)


def test_a_tracker_that_refuses_at_the_start_is_a_mistake(tmp_path: Path, trackers: Path) -> None:
    config = config_of(tmp_path, wandb={"project": "refused"})
    with pytest.raises(UserError, match=r"monitor\.wandb: no such project; mend it, or set monitor\.wandb=null"):
        Monitor(config, 100, samples=0, step=0, is_writer=True)


def test_a_tracker_that_fails_later_does_not_end_the_run(
    tmp_path: Path, trackers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(tmp_path, wandb={"project": "faces"})
    with Monitor(config, 100, samples=0, step=0, is_writer=True) as monitor:
        for step, loss in ((1, 1.0), (2, -1.0), (3, 1.0)):
            monitor.record(record(step, loss))
    assert "no more metrics to Wandb (server is gone); metrics.jsonl has them all" in capsys.readouterr().err
    assert [call[2] for call in calls(trackers) if call[0] == "log"] == [1]
    lines = (config.output / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]


def test_a_file_that_fails_does(tmp_path: Path) -> None:
    monitor = Monitor(config_of(tmp_path), 100, samples=0, step=0, is_writer=True)
    monitor._sinks[0].close(is_failed=False)
    with pytest.raises(ValueError, match="closed file"):
        monitor.record(record(1))


def test_prometheus_shows_the_newest_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = config_of(tmp_path, prometheus_port=0)
    check_sinks(config.monitor)
    with Monitor(config, 100, samples=0, step=0, is_writer=True) as monitor:
        port = int(capsys.readouterr().err.split("metrics for Prometheus on port ")[1].split()[0])
        monitor.record(record(1))
        monitor.record(record(2, loss=0.25))
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        taken = config_of(tmp_path, prometheus_port=port)
        with pytest.raises(UserError, match=r"prometheus_port: \d+: Address already in use"):
            Monitor(taken, 100, samples=0, step=0, is_writer=True)
    assert "facemill_loss 0.25" in text
    assert "facemill_step 2.0" in text
    assert "facemill_softmax_accuracy 0.5" in text


def test_a_rank_that_does_not_write_opens_nothing(tmp_path: Path) -> None:
    config = config_of(tmp_path, prometheus_port=0)
    with Monitor(config, 100, samples=0, step=0, is_writer=False) as monitor:
        monitor.record(record(1))
        monitor.show(record(1))
        monitor.say("nothing")
    assert list(config.output.iterdir()) == []


def test_a_resumed_run_drops_the_records_it_makes_again(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    with Monitor(config, 100, samples=0, step=0, is_writer=True) as monitor:
        for step in (1, 2, 3):
            monitor.record(record(step))
    with open(config.output / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "sam')
    with Monitor(config, 100, samples=8, step=2, is_writer=True) as monitor:
        monitor.record(record(3, loss=0.5))
    lines = (config.output / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss"] for line in lines] == [1.0, 1.0, 0.5]
