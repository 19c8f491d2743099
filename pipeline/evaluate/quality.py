"""Whether a measure of photo quality predicts errors: the error-versus-reject curve.

Pairs with the worst photos are rejected first, and the false non-match rate of the rest is watched (Grother & Tabassi
2007; Schlett et al. 2023, who call it error versus discard). A good measure rejects the pairs that would have failed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.config.errors import UserError
from pipeline.evaluate.verification import Bools, Floats


@dataclass(frozen=True)
class RejectCurve:
    """A staircase: from `rejected[i]` on, up to the next, the rate is `fnmr[i]`."""

    rejected: Floats
    """Shares of the same pairs that are rejected, ascending from 0; the last is below 1."""
    fnmr: Floats
    """Of the pairs that are left, at the one threshold."""


def error_versus_reject(
    distances: Floats, same: Bools, left_quality: Floats, right_quality: Floats, threshold: float
) -> RejectCurve:
    """FNMR of the same pairs that are left when those of the worst quality are rejected.

    A pair is as good as its worse photo. Pairs of the same quality go together. The threshold stays as it is; to start
    at an FNMR of f, hand in the quantile 1 - f of the same pairs' distances, as is the custom.

    Args:
        distances: [P] squared distances; a pair is accepted below the threshold.
        same: [P] the truth; only same pairs count.
        left_quality, right_quality: [P] of the two photos, larger is better: a norm, a detector's score, a model's.
        threshold: squared distance.

    Raises:
        UserError: no same pairs, or quality that is not finite.
    """
    quality = np.minimum(left_quality, right_quality)[same]
    if len(quality) == 0:
        raise UserError("pairs", "no same pairs", "at least one")
    if not np.isfinite(quality).all():
        raise UserError("quality", f"{int(np.count_nonzero(~np.isfinite(quality)))} are not finite", "finite ones")
    order = np.argsort(quality, kind="stable")
    ordered, failed = quality[order], (distances[same] >= threshold)[order]
    first_of_tie = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    left = len(ordered) - first_of_tie
    errors_before = np.concatenate(([0], np.cumsum(failed)))[first_of_tie]
    return RejectCurve(rejected=first_of_tie / len(ordered), fnmr=(failed.sum() - errors_before) / left)


def partial_area(curve: RejectCurve, up_to: float = 0.2) -> float:
    """The area below the curve from 0 to a share rejected (pAUC of Schlett et al. 2023), smaller is better.

    Quality that says nothing keeps about the FNMR at 0, times `up_to`; see `least_area` for what a perfect one leaves.

    Args:
        curve: see `error_versus_reject`.
        up_to: above 0, at most 1.
    """
    if not 0.0 < up_to <= 1.0:
        raise UserError("up_to", f"{up_to:g}", "a share above 0 and at most 1")
    ends = np.append(curve.rejected[1:], 1.0).clip(max=up_to)
    return float(np.sum(curve.fnmr * (ends - curve.rejected.clip(max=up_to))))


def least_area(fnmr: float, num_pairs: int, up_to: float = 0.2) -> float:
    """The partial area if each rejected pair were one that fails: (f - r) / (1 - r) down to 0, a step a pair.

    Args:
        fnmr: the rate before anything is rejected.
        num_pairs: same pairs.
        up_to: as of `partial_area`.
    """
    failing = round(fnmr * num_pairs)
    gone = np.arange(num_pairs)
    return partial_area(RejectCurve(gone / num_pairs, np.maximum(failing - gone, 0) / (num_pairs - gone)), up_to)
