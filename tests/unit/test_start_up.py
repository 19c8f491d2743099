"""What a run loads before it begins: a start is repeated after every failure, and libraries are most of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import yaml

from tests.datasets import make_dataset

TRAIN = Path(__file__).parents[2] / "launch" / "train.py"
SLOW = {
    "torch._dynamo",
    "torch._inductor",
    "torch.distributed.checkpoint",
    "sympy",
    "torchvision",
    "tensorboard",
    "onnx",
}


def test_a_check_loads_nothing_slow_that_it_does_not_need(tmp_path: Path) -> None:
    recipe = {
        "output": str(tmp_path / "run"),
        "data": {"path": str(make_dataset(tmp_path / "data", num_samples=16, num_identities=4, crop_px=32))},
        "backbone": {"kind": "iresnet", "depth": 18, "width": 0.125, "embedding_dim": 8},
        "training": {"epochs": 1, "global_batch": 4, "local_batch": 4},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "-X", "importtime", str(TRAIN), "--config", str(tmp_path / "recipe.yaml"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "torch" in loaded
    assert loaded & SLOW == set()
