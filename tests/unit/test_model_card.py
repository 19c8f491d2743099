"""What a model card says of scores, and the crops that int8 is calibrated on."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline.config.errors import UserError
from pipeline.export.calibration import calibration_inputs
from pipeline.export.card import _scores, read_evaluation
from pipeline.input_spec import InputSpec
from tests.datasets import make_dataset, rotten_copy

SPEC = InputSpec(height_px=32, width_px=32, dtype="uint8")


RAW, AVERAGE = (SimpleNamespace(step=7, weights=weights) for weights in ("raw", "ema"))


def evaluation(step: int) -> dict[str, Any]:
    return {
        "model": {"step": step, "weights": "ema"},
        "data": {"path": "build/lfw"},
        "notes": ["Three photos are missing."],
        "verification": {
            "num_pairs": 600,
            "protocol": "10-fold",
            "accuracy": {"mean": 0.9512},
            "auc": 0.98,
            "eer": 0.05,
            "tar_at_far": {"1e-1": {"tar": 0.97}, "1e-6": {"tar": None}},
            "intervals": {"figures": {"accuracy": {"low": 0.93, "high": 0.97}, "eer": None}},
        },
    }


def test_scores_come_with_their_intervals_and_notes() -> None:
    text = _scores(evaluation(7), AVERAGE)  # type: ignore[arg-type]
    assert "| accuracy | 0.9512 | 0.9300 to 0.9700 |" in text
    assert "| EER | 0.0500 | not known |" in text
    assert "| TAR at FAR 1e-1 | 0.9700 | not known |" in text
    assert "1e-6" not in text
    assert "600 pairs of `build/lfw`" in text
    assert "- Three photos are missing." in text
    assert "**" not in text


def test_scores_of_another_step_or_version_are_called_so() -> None:
    assert _scores(evaluation(5), AVERAGE).startswith(  # type: ignore[arg-type]
        "**The run was evaluated at step 5, this file is of step 7.**"
    )
    assert "another version" in _scores({"verification": {}}, RAW)  # type: ignore[arg-type]


def test_scores_of_other_weights_are_called_so() -> None:
    assert _scores(evaluation(7), RAW).startswith(  # type: ignore[arg-type]
        "**The run was evaluated with the moving average of the weights, this file is of the weights themselves.**"
    )
    assert _scores(evaluation(5), RAW).startswith(  # type: ignore[arg-type]
        "**The run was evaluated at step 5 and with the moving average of the weights, "
        "this file is of step 7 and the weights themselves.**"
    )
    earlier = evaluation(7)
    del earlier["model"]["weights"]  # as earlier versions wrote it
    assert "**" not in _scores(earlier, RAW)  # type: ignore[arg-type]


def test_figures_that_are_null_are_left_out() -> None:
    """A list of another form than ten folds has no accuracy."""
    other = evaluation(7)
    other["verification"]["accuracy"] = None
    text = _scores(other, AVERAGE)  # type: ignore[arg-type]
    assert "accuracy" not in text
    assert "| EER | 0.0500 | not known |" in text


def test_an_evaluation_that_is_not_there_or_not_one_is_none(tmp_path: Path) -> None:
    assert read_evaluation(tmp_path) is None
    (tmp_path / "evaluation").mkdir()
    file = tmp_path / "evaluation" / "evaluation.json"
    for content, found in (("{", None), ("[]", None), (json.dumps(evaluation(7)), evaluation(7))):
        file.write_text(content)
        assert read_evaluation(tmp_path) == found


def test_calibration_crops_are_spread_evenly_and_always_the_same(tmp_path: Path) -> None:
    data = make_dataset(tmp_path, num_samples=20, num_identities=4, crop_px=32)
    every = calibration_inputs(data, "train", SPEC)
    assert (every.shape, every.dtype) == ((20, 3, 32, 32), np.uint8)
    few = calibration_inputs(data, "no such split", SPEC, num_crops=3)
    np.testing.assert_array_equal(few, every[[0, 9, 19]])
    scaled = calibration_inputs(data, "train", SPEC.model_copy(update={"dtype": "float32"}), num_crops=3)
    np.testing.assert_allclose(scaled, (few.astype(np.float64) - 127.5) / 127.5, atol=1e-6)


def test_calibration_needs_crops_of_the_right_size_that_can_be_read(tmp_path: Path) -> None:
    data = make_dataset(tmp_path, num_samples=6, num_identities=2, crop_px=32)
    with pytest.raises(UserError, match=r"crops of 32 px; expected 48 px"):
        calibration_inputs(data, "train", SPEC.model_copy(update={"height_px": 48, "width_px": 48}))
    with pytest.raises(UserError, match="none of its photos can be read"):
        calibration_inputs(rotten_copy(data, tmp_path / "rotten"), "train", SPEC)
