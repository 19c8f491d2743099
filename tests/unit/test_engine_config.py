"""What engines and arithmetic cannot do together is refused in one line."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pipeline.config.engine import DDPConfig, DeepSpeedConfig, check_engine
from pipeline.config.errors import UserError
from pipeline.config.load import validate_config
from pipeline.engine.deepspeed import only_value

LEAST: dict[str, Any] = {
    "output": "run",
    "data": {"path": "data"},
    "training": {"epochs": 1, "global_batch": 8, "local_batch": 4},
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training": {"precision": "tf32"}}, "training.precision: tf32 is a format of NVIDIA GPUs: set device=cuda"),
        ({"training": {"precision": "fp8"}}, "training.precision: 'fp8': input should be 'fp32', 'tf32', 'bf16' or"),
        ({"training": {"compile": True, "batch_norm": "synchronised"}}, "training.compile cannot compile what waits"),
        ({"engine": {"kind": "deepspeed", "stage": 3}}, "engine.stage: 3: input should be 0, 1 or 2"),
        ({"engine": {"kind": "ddp", "stage": 1}}, "engine.stage: unknown key"),
        ({"engine": {"kind": "fsdp"}}, "engine.kind: 'fsdp'; expected one of ddp, deepspeed"),
    ],
)
def test_what_cannot_be_had_is_refused_in_one_line(changes: dict[str, dict[str, object]], message: str) -> None:
    tree = LEAST | {key: LEAST.get(key, {}) | section for key, section in changes.items()}
    with pytest.raises(UserError) as error:
        validate_config(tree)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("optimizer", ["lars", "lamb"])
def test_what_needs_whole_tensors_does_not_go_with_cut_ones(optimizer: str) -> None:
    others: dict[str, Any] = {
        "device": "cpu",
        "precision": "fp32",
        "batch_norm": "micro_batch",
        "compiles": False,
        "freezes": False,
    }
    for engine in (DDPConfig(), DeepSpeedConfig(stage=0)):
        check_engine(engine, optimizer=optimizer, **others)
    for stage in (1, 2):
        with pytest.raises(ValueError, match=f"optim.backbone.kind: {optimizer} needs whole tensors"):
            check_engine(DeepSpeedConfig(stage=stage), optimizer=optimizer, **others)  # type: ignore[arg-type]


def test_different_numbers_of_updates_do_not_go_into_one_count() -> None:
    one, two = torch.tensor(1.0), torch.tensor(2.0)
    assert only_value({"a": two, "b": two.clone()}) == 2
    with pytest.raises(UserError, match=r"engine.stage: the checkpoint's parameters were updated \[1.0, 2.0\] times"):
        only_value({"a": one, "b": two})
