"""Error-versus-reject curves: by hand, with ties, and against a loop."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.errors import UserError
from pipeline.evaluate import quality


def curve(failed: list[int], worth: list[float]) -> quality.RejectCurve:
    """Same pairs that fail or not, of this quality."""
    values = np.array(worth, float)
    return quality.error_versus_reject(np.array(failed) * 2.0, np.ones(len(failed), bool), values, values + 1, 1.0)


def test_the_curve_by_hand() -> None:
    found = curve([1, 0, 1, 0], [0.1, 0.2, 0.3, 0.4])
    assert found.rejected.tolist() == [0.0, 0.25, 0.5, 0.75]
    assert found.fnmr.tolist() == pytest.approx([2 / 4, 1 / 3, 1 / 2, 0.0])
    assert quality.partial_area(found, 1.0) == pytest.approx((1 / 2 + 1 / 3 + 1 / 2) / 4)
    assert quality.partial_area(found, 0.3) == pytest.approx(0.25 / 2 + 0.05 / 3)


def test_pairs_of_one_quality_go_together() -> None:
    found = curve([1, 0, 0, 1], [5, 5, 7, 5])
    assert (found.rejected.tolist(), found.fnmr.tolist()) == ([0.0, 0.75], [0.5, 0.0])
    flat = curve([1, 0, 0, 1], [5, 5, 5, 5])
    assert (flat.rejected.tolist(), flat.fnmr.tolist()) == ([0.0], [0.5])
    assert quality.partial_area(flat) == pytest.approx(0.5 * 0.2)


def test_a_pair_is_as_good_as_its_worse_photo_and_different_pairs_do_not_count() -> None:
    found = quality.error_versus_reject(
        np.array([2.0, 0.1, 0.0, 1.0]),
        np.array([True, True, False, True]),
        np.array([9.0, 5.0, 0.0, 4.0]),
        np.array([1.0, 6.0, 0.0, 4.0]),
        1.0,  # at the threshold a pair is not accepted
    )
    assert found.rejected.tolist() == pytest.approx([0.0, 1 / 3, 2 / 3])
    assert found.fnmr.tolist() == pytest.approx([2 / 3, 1 / 2, 0.0])


def test_perfect_quality_leaves_the_least_area() -> None:
    failed = [1] * 10 + [0] * 90
    best = curve(failed, list(range(100)))
    assert quality.partial_area(best) == pytest.approx(quality.least_area(0.1, 100))
    assert quality.partial_area(curve(failed, list(range(100, 0, -1)))) > 0.1 * 0.2
    # (f - r) / (1 - r) between 0 and f is f + (1 - f) ln(1 - f), which many small steps come near to.
    assert quality.least_area(0.1, 100_000) == pytest.approx(0.1 + 0.9 * np.log(0.9), rel=1e-3)
    assert quality.least_area(0.0, 50) == 0.0
    assert quality.least_area(1.0, 50, 1.0) == pytest.approx(1.0)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=1, max_size=30), st.floats(0.01, 1.0))
def test_the_curve_equals_the_loop(pairs: list[tuple[bool, int]], up_to: float) -> None:
    found = curve([int(failed) for failed, _ in pairs], [worth for _, worth in pairs])
    rejected, fnmr = [], []
    for least in sorted({worth for _, worth in pairs}):
        left = [failed for failed, worth in pairs if worth >= least]
        rejected.append(1 - len(left) / len(pairs))
        fnmr.append(sum(left) / len(left))
    assert found.rejected.tolist() == pytest.approx(rejected)
    assert found.fnmr.tolist() == pytest.approx(fnmr)
    area = 0.0
    for i, rate in enumerate(fnmr):
        end = rejected[i + 1] if i + 1 < len(fnmr) else 1.0
        area += rate * max(0.0, min(end, up_to) - rejected[i])
    assert quality.partial_area(found, up_to) == pytest.approx(area)


def test_users_mistakes() -> None:
    one = np.ones(1)
    with pytest.raises(UserError, match="no same pairs"):
        quality.error_versus_reject(one, np.array([False]), one, one, 1.0)
    with pytest.raises(UserError, match="quality: 1 are not finite"):
        quality.error_versus_reject(one, np.array([True]), one * np.nan, one, 1.0)
    for up_to in (0.0, 1.1):
        with pytest.raises(UserError, match="a share above 0 and at most 1"):
            quality.partial_area(curve([1], [1]), up_to)
