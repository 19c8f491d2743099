"""What the look before a run says, with two ranks that agree or do not."""

from __future__ import annotations

import os
import shutil
import time
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import dist
from pipeline.config.load import load_config
from pipeline.config.schema import Config
from pipeline.engine import preflight
from pipeline.engine.preflight import Finding, Verdict, inspect, table
from tests.datasets import make_dataset
from tests.distributed.processes import run_ranks
from tests.integration import training

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data"), num_samples=100, num_identities=5, crop_px=training.CROP_PX)


@pytest.fixture
def config(tmp_path: Path, data: Path) -> Config:
    return load_config(training.write_recipe(tmp_path / "recipe.yaml", data, tmp_path / "run"), ["checkpoint.keep=2"])


def look(config: Config, fault: str) -> list[Finding]:
    """Inspect with a fault on rank 1; the processes end with it."""
    if dist.rank() == 1:
        globals()[fault]()
    return inspect(config, torch.device("cpu"))


def none() -> None:
    pass


def another_digest() -> None:
    plan_run = preflight.plan_run

    def changed(config: Config) -> Any:
        plan = plan_run(config)
        return replace(plan, split=replace(plan.split, digest="0" * 64))

    preflight.plan_run = changed


def no_data() -> None:
    os.chdir("/")


def little_disk() -> None:
    shutil.disk_usage = lambda path: Usage(10**9, 10**9 - 10**6, 10**6)  # type: ignore[assignment]


def late_clock() -> None:
    real = time.time
    time.time = lambda: real() - 100


def another_version() -> None:
    preflight.platform.python_version = lambda: "3.99.0"


def rows(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.subject: finding for finding in findings}


def test_all_is_well(config: Config) -> None:
    one, other = run_ranks(look, 2, config, "none")
    assert one == other
    found = rows(one)
    assert list(found) == [
        *("configuration", "versions", "devices", "shared memory", "clocks", "run and data", "output", "disk"),
        *("link", "neighbours"),
    ]
    assert {finding.verdict for finding in one if finding.subject not in ("link", "neighbours")} == {Verdict.OK}
    assert "2 stay, one is written" in found["disk"].found
    assert list(config.output.iterdir()) == []
    lines = table(one).splitlines()
    assert lines[0].startswith("ok       configuration  sha256 ")
    assert len(lines) >= len(one) + 1


@pytest.mark.parametrize(
    ("fault", "subject", "found", "remedy"),
    [
        ("another_digest", "run and data", "rank 1: samples 000000000000…", "copy one data set to all nodes"),
        ("little_disk", "disk", "976.6 KiB free", "lower checkpoint.keep"),
        ("late_clock", "clocks", "rank 1 behind rank 0", "NTP"),
        ("another_version", "versions", "rank 1: Python 3.99.0", "one image"),
    ],
)
def test_a_rank_that_differs_is_named(config: Config, fault: str, subject: str, found: str, remedy: str) -> None:
    # of the disk: three checkpoints of 770 KiB do not fit
    (findings, _) = run_ranks(look, 2, config, fault)
    (failure,) = (finding for finding in findings if finding.verdict is Verdict.FAILURE)
    assert failure.subject == subject
    assert found in failure.found
    assert remedy in failure.remedy
    assert f"→ {failure.remedy}" in table(findings)


def test_a_node_without_the_data_is_named_and_nothing_hangs(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(data, tmp_path / "here")
    recipe = training.write_recipe(tmp_path / "recipe.yaml", Path("here"), tmp_path / "run")
    findings = rows(run_ranks(look_in, 2, str(tmp_path), load_config(recipe, []), "no_data")[0])
    assert findings["run and data"].verdict is Verdict.FAILURE
    assert "rank 1: here: no such directory" in findings["run and data"].found
    assert "disk" not in findings


def look_in(folder: str, config: Config, fault: str) -> list[Finding]:
    os.chdir(folder)
    return look(config, fault)


def test_a_single_process_has_no_links(config: Config) -> None:
    assert "link" not in rows(inspect(config, torch.device("cpu")))
