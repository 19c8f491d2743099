"""The estimator: sizes are exact, scaling is that of what was measured, and the command prints what was asked for."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config.errors import UserError
from pipeline.config.load import load_config, validate_config
from pipeline.config.schema import Config
from pipeline.engine import estimate as estimating
from pipeline.engine import measure_step
from pipeline.engine.measure_step import StepMeasurement, StepRequest
from pipeline.model.backbones.cost import backbone_cost
from tests.integration import training

DIM = 64
MIB = 2**20


def config(**changes: object) -> Config:
    tree = {
        "output": "unused",
        "data": {"path": "unused"},
        "backbone": {"kind": "iresnet", "depth": 18, "width": 0.125, "embedding_dim": DIM},
        "training": {"epochs": 1, "global_batch": 16, "local_batch": 4},
    }
    return validate_config(tree | changes)


def test_sizes_of_a_small_run_are_those_of_its_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure_step, "keep_freed_memory", lambda: None)  # it would change this process for good
    monkeypatch.setattr(estimating, "_run", measure_step.measure)
    monkeypatch.setattr(estimating, "seconds_per_byte", lambda: 1e-9)
    found = estimating.estimate(config(), num_classes=2000, num_ranks=2, crop_px=32)
    assert (found.shape.num_rows, found.shape.num_queries, found.shape.num_calls) == (1000, 8, 2)
    centres = 1000 * DIM * 4
    for name in ("class centres", "their gradient", "their optimizer state"):
        assert found.memory[name] == centres, name
    assert found.memory["its gradient"] == found.memory["its optimizer state"] < found.memory["backbone"]
    # the stem's output alone is 4 × 8 × 32 × 32 floats, and is kept before and after its norm
    assert found.memory["activations of a micro-batch"] > 2 * 4 * 8 * 32 * 32 * 4
    assert found.tensor_peak_bytes > sum(found.memory.values()) - found.memory["the head's working memory"]
    assert set(found.seconds) == {
        "backbone, forward and backward",
        "head, forward and backward",
        "optimizers",
        "communication",
    }
    assert all(value > 0 for value in found.seconds.values())


def test_an_average_of_the_weights_takes_as_much_as_the_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure_step, "keep_freed_memory", lambda: None)
    monkeypatch.setattr(estimating, "_run", measure_step.measure)
    with_average = estimating.estimate(config(ema={}), num_classes=200, num_ranks=1, crop_px=32)
    assert with_average.memory["the average of its weights"] == with_average.memory["backbone"]
    assert (
        with_average.tensor_peak_bytes
        > sum(with_average.memory.values()) - with_average.memory["the head's working memory"]
    )
    without = estimating.estimate(config(), num_classes=200, num_ranks=1, crop_px=32)
    assert "the average of its weights" not in without.memory


def test_what_grows_with_the_classes_is_scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[StepRequest] = []

    def run(request: StepRequest) -> StepMeasurement:
        asked.append(request)
        row = 4 * DIM
        per_phase = dict.fromkeys(("forward", "head", "backward", "backbone_optimizer", "head_optimizer"), 0)
        # activations of 600 MiB in the forward pass; three tensors like the centres there, four in the optimizer
        mapped = per_phase | {
            "forward": 600 * MIB + 3 * row * request.num_rows,
            "head_optimizer": 4 * row * request.num_rows,
        }
        return StepMeasurement(
            seconds=per_phase | {"forward": 1.0, "backward": 2.0, "head": 1e-6 * request.num_rows},
            processor_seconds=per_phase | {"forward": 1.0},
            resident_bytes=50 * MIB + max(mapped.values()),
            process_bytes=700 * MIB,
            live_bytes=mapped,
            mapped_bytes=mapped,
            activation_bytes=600 * MIB,
            head_working_bytes=MIB,
            tensor_bytes={
                "backbone": MIB,
                "backbone_optimizer": MIB,
                "backbone_gradient": MIB,
                "head": row * request.num_rows,
                "head_optimizer": row * request.num_rows,
                "head_gradient": row * request.num_rows,
            },
        )

    monkeypatch.setattr(estimating, "_run", run)
    few = estimating.estimate(config(), 1_000_000, 1, 32)
    many = estimating.estimate(config(), 100_000_000, 1, 32)
    assert [(r.num_queries, r.holds_activations, r.accumulates) for r in asked[:2]] == [(4, True, True)] * 2
    assert few.memory["class centres"] == 4 * DIM * 1_000_000
    assert few.resident_peak_bytes == 650 * MIB + 3 * 4 * DIM * 1_000_000
    # with so many the optimizer's phase is the greater one, which the measured sizes do not show
    assert many.resident_peak_bytes == 50 * MIB + 4 * 4 * DIM * 100_000_000
    assert many.seconds["head, forward and backward"] == pytest.approx(4 * 100)
    assert many.seconds["backbone, forward and backward"] == 4 * 3.0


def test_a_head_that_wants_the_whole_batch_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[StepRequest] = []

    def run(request: StepRequest) -> StepMeasurement:
        asked.append(request)
        raise UserError("stop", "here")

    monkeypatch.setattr(estimating, "_run", run)
    with pytest.raises(UserError, match="stop"):
        estimating.estimate(config(head={"margin": {"kind": "adaface"}}), 1000, 2, 32)
    assert (asked[0].num_queries, asked[0].holds_activations) == (16, False)


def test_the_command_prints_memory_and_time(tmp_path: Path) -> None:
    recipe = training.write_recipe(tmp_path / "recipe.yaml", tmp_path / "nowhere", tmp_path / "run")
    script = [sys.executable, str(training.REPOSITORY / "launch" / "train.py"), "--config", str(recipe)]
    small = ["training.global_batch=4", "training.local_batch=2", "--estimate", "--ranks", "2", "--num-classes", "3000"]
    result = subprocess.run([*script, *small], capture_output=True, text=True, timeout=100, check=False)
    assert result.returncode == 0, result.stderr
    assert "3,000 classes on 2 ranks, 112 px: 1,500 class centres, 1 micro-batch a rank" in result.stdout
    assert re.search(r"class centres +0\.4\n", result.stdout)
    cost = backbone_cost(load_config(recipe).backbone, 112)
    size = f"{cost.num_parameters:,} parameters; a photo takes {cost.multiply_adds / 1e9:.3f} G multiply-adds"
    assert f"backbone: {size}" in result.stdout
    assert f"and {cost.activation_bytes / 2**20:.2f} MiB of activations in fp32\n" in result.stdout
    assert re.search(r"communication +0\.\d{3} ", result.stdout)
    assert re.search(r"time of a step, s +\d+\.\d{3}\n", result.stdout)
    assert not (tmp_path / "run").exists()
    result = subprocess.run([*script, "--ranks", "2"], capture_output=True, text=True, timeout=100, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("error: --ranks, --num-classes: given without --estimate")


def test_mistakes_are_one_line() -> None:
    with pytest.raises(UserError, match="device: cuda; expected cpu"):
        estimating.estimate(config(device="cuda"), 100, 1, 32)
    with pytest.raises(UserError, match=r"engine.stage: estimates do not divide what ZeRO 1 divides among ranks"):
        estimating.estimate(config(engine={"kind": "deepspeed"}), 100, 1, 32)
    with pytest.raises(UserError, match="cannot take crops of 33 px"):
        estimating.estimate(config(), 100, 1, 33)
