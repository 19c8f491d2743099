"""The figures and bounds of the comparison between an exported file and its model, on a hand-made set."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.config.errors import UserError
from pipeline.evaluate.embed import Embedder
from pipeline.evaluate.pairs import Pair, PairList, Photo
from pipeline.evaluate.photos import Crop, Rejected
from pipeline.export import parity
from pipeline.export.parity import Bounds, compare, measure, require_parity, thin_drawn

CPU = torch.device("cpu")
A, B = (Photo("a", 1), Photo("a", 2)), (Photo("b", 1), Photo("b", 2))
# two folds, each with a same and a different pair
PAIRS = PairList([Pair(*A, 0), Pair(A[0], B[0], 0), Pair(*B, 1), Pair(A[1], B[1], 1)], 2)


class OnePixel:
    """Photos of one pixel, whose red value is the angle of the embedding in degrees."""

    degrees: Mapping[Photo, int] = {A[0]: 0, A[1]: 10, B[0]: 90, B[1]: 100}

    def load(self, photo: Photo) -> Crop | Rejected:
        return np.array([[[self.degrees[photo], 0, 0]]], np.uint8)


def turned(extra_degrees: float, where: str = "model.onnx") -> Embedder:
    """Embeddings on the unit circle; people of 90° and more are turned further by so much."""

    def embed(images: Tensor) -> Tensor:
        degrees = images[:, 0, 0, 0].double()
        degrees = degrees + extra_degrees * (degrees >= 90)
        radians = degrees * math.pi / 180
        return torch.stack([radians.cos(), radians.sin()], dim=1)

    return Embedder(embed, 1, CPU, where)


def test_the_greatest_and_mean_distance_and_the_accuracies() -> None:
    trained = measure(turned(0), OnePixel(), PAIRS)
    exported = turned(60)
    found = compare(exported, OnePixel(), trained, measure(exported, OnePixel(), PAIRS), Bounds(0.6, 0.0))
    assert (found.num_photos, found.num_pairs) == (4, 4)
    assert found.max_cosine_distance == pytest.approx(0.5)  # 1 − cos 60°
    # photos at 0°, 90°, 10°, 100° in order of first use, and the first once more by itself
    assert found.mean_cosine_distance == pytest.approx((0 + 0.5 + 0 + 0.5 + 0) / 5)
    assert (found.trained_accuracy, found.accuracy) == (1.0, 1.0)
    require_parity(found, "model.onnx", "")


def test_a_greater_distance_or_another_accuracy_is_refused_and_the_bound_itself_is_not() -> None:
    trained = measure(turned(0), OnePixel(), PAIRS)
    exported = turned(-90)  # both people in one place: half of the pairs are judged wrongly
    found = compare(exported, OnePixel(), trained, measure(exported, OnePixel(), PAIRS), Bounds(2.0, 0.5))
    assert found.accuracy_difference == -0.5
    require_parity(found, "model.onnx", "")
    require_parity(dataclasses.replace(found, accuracy=1.0, trained_accuracy=0.0), "model.onnx", "")
    for bounds in (Bounds(2.0, 0.49), Bounds(0.99, 0.5)):
        with pytest.raises(UserError, match=r"^model.onnx: not written, it differs .* \(bound \S+\); take fp32$"):
            require_parity(dataclasses.replace(found, bounds=bounds), "model.onnx", "take fp32")


def test_a_file_that_differs_for_a_photo_by_itself_is_found() -> None:
    whole = turned(0).embed

    def embed(images: Tensor) -> Tensor:
        return whole(images) if len(images) > 1 else -whole(images)

    exported = Embedder(embed, 1, CPU, "model.onnx")
    trained = measure(turned(0), OnePixel(), PAIRS)
    found = compare(exported, OnePixel(), trained, measure(exported, OnePixel(), PAIRS), Bounds(0.6, 0.0))
    assert found.max_cosine_distance == pytest.approx(2.0)


def test_drawn_pairs_are_thinned_alike_in_each_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity, "DRAWN_PAIRS_PER_FOLD", 1)
    same = [Pair(Photo("a", 1), Photo("a", n), fold) for fold in (0, 1) for n in (2, 3)]
    different = [Pair(Photo("a", 1), Photo("b", n), fold) for fold in (0, 1) for n in (1, 2)]
    thinned = thin_drawn(PairList(same[:2] + different[:2] + same[2:] + different[2:], 2))
    assert thinned == PairList([same[0], different[0], same[2], different[2]], 2)
