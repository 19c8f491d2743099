"""SCRFD: what its outputs mean, held against a loop over cells; batches; and models that are something else."""

from __future__ import annotations

import hashlib
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest

from pipeline.config.errors import UserError
from preprocess.detect import Face, load_detector
from preprocess.detect.scrfd import Scrfd, letterbox
from tests.datasets import random_image
from tests.scrfd_models import STRIDES, write_model

Pixels = npt.NDArray[np.uint8]
SIDE = 96


def pictures(count: int) -> list[Pixels]:
    rng = np.random.default_rng(1)
    sizes = [(96, 96), (60, 130), (200, 90), (33, 47), (150, 150)]
    return [
        cv2.resize(random_image(rng, 128), sizes[number % 5], interpolation=cv2.INTER_LINEAR) for number in range(count)
    ]


def same(left: list[list[Face]], right: list[list[Face]]) -> bool:
    def plain(faces: list[Face]) -> list[tuple[bytes, bytes, float]]:
        return [(face.bbox.tobytes(), face.landmarks.tobytes(), face.score) for face in faces]

    return [plain(faces) for faces in left] == [plain(faces) for faces in right]


def loop(path: Path, image: Pixels, side: int) -> list[tuple[float, list[float], list[float]]]:
    """Score, box and landmarks in px of the photo, by falling score: anchor by anchor, from the network's outputs."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    canvas = np.zeros((side, side, 3), np.uint8)
    inner = cv2.resize(image, (int(width * scale), int(height * scale)), interpolation=cv2.INTER_LINEAR)
    canvas[: inner.shape[0], : inner.shape[1]] = inner
    feed = ((canvas.astype(np.float32) - 127.5) / 128).transpose(2, 0, 1)[None]
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    outputs = [output.reshape(-1, output.shape[-1]) for output in session.run(None, {"x": feed})]
    found = []
    for level, stride in enumerate(STRIDES):
        number = 0
        for row in range(side // stride):
            for column in range(side // stride):
                for _ in range(2):
                    score = float(outputs[level][number, 0])
                    left, up, right, down = (float(value) * stride for value in outputs[3 + level][number])
                    x, y = column * stride, row * stride
                    points = []
                    for k, value in enumerate(outputs[6 + level][number]):
                        points.append((x if k % 2 == 0 else y) + float(value) * stride)
                    if score >= 0.5 and left + right > 0 and up + down > 0:
                        found.append((score, [x - left, y - up, x + right, y + down], points))
                    number += 1
    found.sort(key=lambda each: -each[0])
    kept: list[tuple[float, list[float], list[float]]] = []
    for each in found:
        if all(overlap(each[1], other[1]) <= 0.4 for other in kept):
            kept.append(each)

    def full(values: list[float]) -> list[float]:
        return [(value + 0.5) / scale - 0.5 for value in values]

    # black cells below the picture tie: such faces stand in the order of their boxes
    return sorted(
        ((score, full(box), full(points)) for score, box, points in kept), key=lambda each: (-each[0], each[1])
    )


def overlap(a: list[float], b: list[float]) -> float:
    wide = max(0.0, min(a[2], b[2]) - max(a[0], b[0]) + 1)
    high = max(0.0, min(a[3], b[3]) - max(a[1], b[1]) + 1)
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b)]
    return wide * high / (sum(areas) - wide * high)


@pytest.mark.parametrize("has_batch", [True, False])
def test_faces_are_those_of_a_loop_over_anchors(tmp_path: Path, has_batch: bool) -> None:
    path = write_model(tmp_path / "m.onnx", side=SIDE, has_batch=has_batch)
    detector = Scrfd(path)
    assert detector.weights_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    images = pictures(5)
    for image, faces in zip(images, detector.detect(images), strict=True):
        expected = loop(path, image, SIDE)
        assert len(expected) > 3
        assert len(faces) == len(expected)
        for face, (score, box, points) in zip(faces, expected, strict=True):
            assert face.score == pytest.approx(score, abs=1e-5)
            np.testing.assert_allclose(face.bbox, box, atol=1e-2)
            np.testing.assert_allclose(face.landmarks.ravel(), points, atol=1e-2)


def test_a_photo_has_the_same_faces_whatever_stands_beside_it(tmp_path: Path) -> None:
    detector = Scrfd(write_model(tmp_path / "m.onnx", side=SIDE, has_batch=True))
    images = pictures(37)
    alone = [detector.detect([image])[0] for image in images]
    for batch_size in (16, 5):  # neither divides 37
        detector.batch_size = batch_size
        assert same(detector.detect(images), alone)
        assert same(detector.detect(images[::-1])[::-1], alone)
        assert detector.detect([]) == []


def test_both_forms_and_any_size_agree(tmp_path: Path) -> None:
    images = pictures(2)
    forms = [
        Scrfd(write_model(tmp_path / f"{number}.onnx", side=side, has_batch=has_batch))
        for number, (side, has_batch) in enumerate([(None, True), (None, False), (640, True)])
    ]
    assert [form.max_side_px for form in forms] == [640] * 3
    first, *others = (form.detect(images) for form in forms)
    assert all(same(first, other) for other in others)


def test_letterbox_keeps_the_shape_and_the_corner() -> None:
    image = np.full((50, 100, 3), 200, np.uint8)
    canvas, scale = letterbox(image, (64, 64))
    assert scale == pytest.approx(0.64)
    assert (canvas[:32] == 200).all()
    assert (canvas[32:] == 0).all()


def test_other_models_are_refused(tmp_path: Path) -> None:
    without_landmarks = write_model(tmp_path / "six.onnx", side=SIDE, has_batch=True, widths=(1, 4))
    with pytest.raises(UserError, match="6 outputs out1_8"):
        Scrfd(without_landmarks)
    other_widths = write_model(tmp_path / "widths.onnx", side=SIDE, has_batch=True, widths=(1, 4, 12))
    with pytest.raises(UserError, match=r"1x288x12.*expected.*1x288x10"):
        Scrfd(other_widths)
    with pytest.raises(UserError, match="multiples of 32"):
        Scrfd(write_model(tmp_path / "odd.onnx", side=100, has_batch=True))
    (tmp_path / "text.onnx").write_text("none")
    with pytest.raises(UserError, match="is no ONNX model"):
        Scrfd(tmp_path / "text.onnx")
    with pytest.raises(UserError, match="no such file"):
        load_detector("scrfd", tmp_path / "missing.onnx", 20)
    with pytest.raises(UserError, match="path of an SCRFD"):
        load_detector("scrfd", None, 20)
