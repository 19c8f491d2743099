"""The README's commands run: the main road end to end, on a smaller set and a shorter run."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
SMALLER = {
    "synth": {"--identities": "8", "--photos": "8"},
    "shard": {"--size": "32", "--val-identities": "0.5"},
}
SHORTER = ["training.epochs=2", "training.global_batch=16", "training.local_batch=8", "monitor.every_steps=1"]


def blocks(language: str) -> list[str]:
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", (REPOSITORY / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    return [text for fence, text in fences if fence == language]


def commands() -> list[list[str]]:
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


def adapt(command: list[str]) -> list[str]:
    """The same command, with fewer photos and steps."""
    command = list(command)
    for option, value in SMALLER.get(command[1], {}).items():
        command[command.index(option) + 1] = value
    if command[0] == "torchrun":
        command[1:1] = ["--standalone"]
        command += SHORTER
    return command


def test_the_main_road_from_photos_to_a_report(tmp_path: Path) -> None:
    road = [command for command in commands() if command[0] != "make"]
    assert [command[1] for command in road[:4]] == ["synth", "shard", "verify", "stats"]
    for name in ("launch", "configs"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    for command in map(adapt, road):
        result = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200, check=False
        )
        assert result.returncode == 0, f"{shlex.join(command)}\n{result.stdout}\n{result.stderr}"
    evaluation = json.loads((tmp_path / "build/run/evaluation/evaluation.json").read_text())
    assert 0.3 <= evaluation["verification"]["accuracy"]["mean"] <= 1
    assert "std" in evaluation["verification"]["accuracy"]
    assert "<html" in (tmp_path / "build/run/evaluation/report.html").read_text()


@pytest.mark.parametrize("command", [c for c in commands() if c[0] == "make"], ids=shlex.join)
def test_make_knows_the_targets(command: list[str]) -> None:
    subprocess.run([*command, "--dry-run"], cwd=REPOSITORY, check=True, capture_output=True)


def test_the_mistake_that_the_readme_shows_is_what_a_user_sees() -> None:
    shown = next(block for block in blocks("") if "did you mean" in block).splitlines()
    command = shlex.split(shown[0].removeprefix("$ "))
    result = subprocess.run(
        [sys.executable, *command[1:]], cwd=REPOSITORY, capture_output=True, text=True, timeout=100, check=False
    )
    assert result.returncode == 2
    assert result.stderr.strip() == shown[1]
    assert result.stdout == ""


def test_links_lead_to_files() -> None:
    for name in ("README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in (REPOSITORY / "docs").glob("*.md"))):
        text = (REPOSITORY / name).read_text()
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            assert ((REPOSITORY / name).parent / target).exists(), f"{name} links to {target}"
