"""Descriptions of checkpoints that no run has written."""

from __future__ import annotations

from typing import Any

from pipeline.checkpoint import CheckpointInfo


def make_info(step: int, **fields: Any) -> CheckpointInfo:
    """Of a step in a run of ten samples a step; `fields` are what matters to the test."""
    made_up: dict[str, Any] = {
        "samples": 10 * step,
        "num_bad_samples": 0,
        "world_size": 1,
        "num_classes": 3,
        "label_map_sha256": "",
        "split": "train",
        "config": {},
        "dataset": {"digest": "0"},
        "versions": {},
    }
    return CheckpointInfo(step=step, **(made_up | fields))
