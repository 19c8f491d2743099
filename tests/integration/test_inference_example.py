"""The example that needs nothing of ours crops faces as we do, and compares two photos with an exported file."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from pipeline.export.description import Description
from pipeline.export.to_onnx import float_model, serialise
from pipeline.input_spec import InputSpec
from pipeline.model.backbones import build_backbone
from preprocess.align import template
from preprocess.crops import CropMaker, CropOptions
from tests.backbones import DIM, SMALL
from tests.integration.training import REPOSITORY
from tests.scripts import load_script

EXAMPLE = REPOSITORY / "docs" / "examples" / "compare_two_photos.py"
SIZE_PX = 112
REAL = Path(os.environ.get("FACEMILL_TEST_DATA", "nowhere"))
YUNET = REAL / "weights" / "yunet_n_dynamic.onnx"
needs_photos = pytest.mark.skipif(not YUNET.is_file(), reason="FACEMILL_TEST_DATA names no real photos")
SPEC = InputSpec(height_px=SIZE_PX, width_px=SIZE_PX, template=template(SIZE_PX).ravel().tolist())


def run(*words: object, expected: int = 0) -> str:
    command = [sys.executable, str(EXAMPLE), *map(str, words)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120, cwd=EXAMPLE.parent)
    assert done.returncode == expected, done.stderr
    return done.stdout if expected == 0 else done.stderr


def test_it_needs_no_code_of_ours() -> None:
    names = [name for node in ast.walk(ast.parse(EXAMPLE.read_text())) for name in imported(node)]
    assert sorted(names) == ["cv2", "json", "numpy", "onnxruntime", "sys"]


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.ImportFrom):
        return [node.module or ""]
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else []


@needs_photos
def test_its_crops_are_ours() -> None:
    example = load_script(EXAMPLE)
    maker = CropMaker(CropOptions(detector="yunet", size_px=SIZE_PX), YUNET)
    detector = cv2.FaceDetectorYN.create(str(YUNET), "", (320, 320), score_threshold=0.7)
    photos = sorted((REAL / "lfw").glob("*/*.jpg"))[:12]
    assert len(photos) == 12
    for photo in photos:
        ours, reason, _ = maker.crop_photo(photo)
        assert ours is not None, reason
        theirs = example.crop_face(str(photo), detector, SPEC.model_dump())
        difference = np.abs(ours.astype(int) - theirs)
        assert difference.mean() < 0.5, photo.name
        assert np.percentile(difference, 99) <= 4, photo.name


class Eyes:
    """A detector that knows where the face is in a photo of some width."""

    def __init__(self, points: np.ndarray, width: int) -> None:
        self.points, self.width, self.seen = points, width, (0, 0)

    def setInputSize(self, size: tuple[int, int]) -> None:
        self.seen = size

    def detect(self, photo: np.ndarray) -> tuple[int, np.ndarray]:
        assert photo.shape[1::-1] == self.seen
        points = (self.points + 0.5) * (photo.shape[1] / self.width) - 0.5
        return 1, np.array([[0, 0, 1, 1, *points.ravel(), 0.9]], np.float32)


@pytest.mark.parametrize("side", [600, 1280, 2000])
def test_crops_come_from_the_photo_and_not_from_its_shrunk_copy(tmp_path: Path, side: int) -> None:
    noise = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8), (0, 0), 3)
    photo = cv2.normalize(noise, None, 0, 255, cv2.NORM_MINMAX)  # type: ignore[call-overload]
    cv2.imwrite(str(tmp_path / "photo.png"), photo)
    points = (template(SIZE_PX) - SIZE_PX / 2) * 1.3 + side / 2 + 7.3
    found = load_script(EXAMPLE).crop_face(str(tmp_path / "photo.png"), Eyes(points, side), SPEC.model_dump())
    # the points are the template's, 1.3 times as large: crop pixel x lies at 1.3 (x - 56) + side / 2 + 7.3
    shift = side / 2 + 7.3 - 1.3 * SIZE_PX / 2
    back = np.array([[1.3, 0, shift], [0, 1.3, shift]])
    wanted = cv2.warpAffine(photo, back, (SIZE_PX, SIZE_PX), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)[..., ::-1]
    difference = np.abs(found.astype(int) - wanted)
    assert difference.mean() < 1.0
    assert wanted.std() > 20


@needs_photos
def test_a_photo_is_nearer_to_its_smaller_darker_copy_than_to_another_person(tmp_path: Path) -> None:
    config = SMALL["iresnet18-se"]
    torch.manual_seed(0)
    model = build_backbone(config, SIZE_PX, seed=0)
    with torch.no_grad():  # running statistics of something; what follows needs no training
        model.train()(torch.randint(0, 256, (8, 3, SIZE_PX, SIZE_PX), dtype=torch.uint8))
    description = Description(SPEC, DIM, config.model_dump(mode="json"), "raw", 1, 1, [("train", "d")], "none")
    file = tmp_path / "model.onnx"
    file.write_bytes(serialise(float_model(model.eval(), description, 17), description.metadata()))
    one, other = (sorted((REAL / "lfw" / name).glob("*.jpg"))[0] for name in ("Abdel_Madi_Shabneh", "Abel_Pacheco"))
    image = cv2.imread(str(one))
    copy = cv2.copyMakeBorder(cv2.resize(image, None, fx=0.8, fy=0.8), 30, 0, 0, 50, cv2.BORDER_REPLICATE)
    cv2.imwrite(str(tmp_path / "copy.jpg"), (copy * 0.8).astype(np.uint8))
    same, different = (
        float(run(file, YUNET, one, photo).removeprefix("cosine ")) for photo in (tmp_path / "copy.jpg", other)
    )
    assert different < same <= 1.0
    cv2.imwrite(str(tmp_path / "grey.png"), np.full((200, 200, 3), 128, np.uint8))
    assert "grey.png: no face" in run(file, YUNET, one, tmp_path / "grey.png", expected=1)
    assert "none.jpg: not a photo" in run(file, YUNET, one, tmp_path / "none.jpg", expected=1)
