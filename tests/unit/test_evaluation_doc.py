"""The example of docs/evaluation.md runs, and what it prints is what its models were made for."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import torch

from pipeline.inputs.models import open_model

REPOSITORY = Path(__file__).parents[2]


def examples() -> list[str]:
    text = (REPOSITORY / "docs" / "evaluation.md").read_text()
    return re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def test_the_example_of_other_measures_runs() -> None:
    code = examples()[-1]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == code.count("print(")
    assert "needs 30000 for 1e-4" in lines[1]
    # The new model is better for sure, and cannot search the old one's gallery.
    low, high = (float(number) for number in re.findall(r"(?:low|high)=([\d.]+)", lines[3]))
    assert 0.0 < low < high
    assert "method='exact'" in lines[4]
    assert "new_old=0.0" in lines[-1]


def test_the_example_of_embeddings_is_a_model(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", examples()[0]]
    subprocess.run(command, check=True, timeout=60, cwd=tmp_path)
    found = open_model(str(tmp_path / "embeddings.npz"), torch.device("cpu"))
    assert (found.description.kind, found.description.embedding_dim) == ("embeddings", 512)


def test_every_module_of_measures_is_listed() -> None:
    text = (REPOSITORY / "docs" / "evaluation.md").read_text()
    for name in (
        "protocols",
        "intervals",
        "search",
        "identification",
        "templates",
        "clustering",
        "fairness",
        "quality",
        "comparison",
    ):
        assert f"`{name}`" in text
