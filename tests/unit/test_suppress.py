"""Non-maximum suppression against its definition, box by box."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from preprocess.detect.suppress import suppress


def by_definition(
    boxes: npt.NDArray[np.float64], scores: npt.NDArray[np.float64], threshold: float, over_smaller: bool
) -> list[int]:
    kept: list[int] = []
    for number in sorted(range(len(scores)), key=lambda number: (-scores[number], number)):
        if all(overlap(boxes[number], boxes[other], over_smaller) <= threshold for other in kept):
            kept.append(number)
    return kept


def overlap(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64], over_smaller: bool) -> float:
    def area(x0: float, y0: float, x1: float, y1: float) -> float:
        return max(x1 - x0 + 1, 0.0) * max(y1 - y0 + 1, 0.0)

    shared = area(max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    whole = min(area(*a), area(*b)) if over_smaller else area(*a) + area(*b) - shared
    return shared / whole


@pytest.mark.parametrize("over_smaller", [False, True])
@pytest.mark.parametrize("num_pairs", [1 << 18, 300])
@pytest.mark.parametrize("count", [0, 1, 2, 63, 64, 65, 200, 301])
def test_those_kept_are_those_of_the_definition(
    monkeypatch: pytest.MonkeyPatch, count: int, num_pairs: int, over_smaller: bool
) -> None:
    monkeypatch.setattr("preprocess.detect.suppress._NUM_PAIRS", num_pairs)
    rng = np.random.default_rng(count)
    corner, sides = rng.uniform(0, 20, (count, 2)), rng.uniform(1, 40, (count, 2))
    boxes = np.hstack([corner, corner + sides, rng.uniform(size=(count, 3))])  # more columns than it looks at
    scores = rng.integers(0, 30, count) / 30  # many are equal: the first of them stays
    for threshold in (0.3, 0.7):
        kept = suppress(boxes, scores, threshold, over_smaller)
        assert kept.tolist() == by_definition(boxes[:, :4], scores, threshold, over_smaller)
        assert kept.dtype == np.int64
    assert count != 200 or 5 < len(kept) < 190, "some are dropped, and not nearly all"


def test_an_overlap_at_the_threshold_stays() -> None:
    boxes = np.array([[0, 0, 9, 9], [0, 5, 9, 14]], np.float64)  # 50 of 150 pixels are shared
    assert suppress(boxes, np.array([1.0, 0.5]), 1 / 3).tolist() == [0, 1]
    assert suppress(boxes, np.array([0.5, 1.0]), 0.33).tolist() == [1]
    assert suppress(boxes, np.array([1.0, 0.5]), 0.5, over_smaller=True).tolist() == [0, 1]
