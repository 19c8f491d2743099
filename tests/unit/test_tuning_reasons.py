"""Why a trial failed, told in a line, and which failures another attempt may mend."""

from __future__ import annotations

import pytest
import torch
from ray.train import WorkerGroupError

from pipeline.config.errors import UserError
from pipeline.tuning.reasons import in_a_line, is_memory


def test_memory_that_does_not_suffice_is_told_from_a_dead_peer() -> None:
    with pytest.raises(RuntimeError) as too_much:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_memory(too_much.value)
    assert in_a_line(too_much.value).startswith("out of memory: ")
    assert is_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."))
    assert is_memory(MemoryError())
    assert not is_memory(RuntimeError("Connection closed by peer [127.0.0.1]:4711"))


def test_reasons_are_a_line() -> None:
    assert in_a_line(UserError("optim.backbone.lr", "1e30", "less")) == "optim.backbone.lr: 1e30; expected less"
    assert in_a_line(MemoryError()) == "out of memory: MemoryError"
    assert in_a_line(RuntimeError("first\n  at the end\n\n")) == "at the end"
    failed = WorkerGroupError("Training failed due to worker errors:\nValueError: odd", {1: ValueError("odd")})
    assert in_a_line(failed) == "ValueError: odd"
