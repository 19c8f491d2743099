"""Do measures of photo quality predict errors? The norm of the embedding and SER-FIQ, by error-versus-reject curves."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from pipeline.config.errors import UserError
from pipeline.evaluate.embed import Embedder, Embeddings
from pipeline.evaluate.pairs import Photo
from pipeline.evaluate.photos import PhotoSource
from pipeline.evaluate.quality import RejectCurve, error_versus_reject, least_area, partial_area
from pipeline.evaluate.result_sections import Quality, RejectFigures
from pipeline.evaluate.run import ScoredPairs
from pipeline.evaluate.ser_fiq import NUM_PASSES, ser_fiq, why_not
from pipeline.evaluate.verification import Floats

START_FNMR = 0.05
UP_TO = 0.2

_CURVE_POINTS = 400
_SAME_LENGTH = 1e-5
"""Lengths whose spread is a smaller share of them differ by float32's rounding alone."""


def measure_quality(
    embedder: Embedder,
    source: PhotoSource,
    found: Embeddings,
    scored: ScoredPairs,
    *,
    batch: int,
    advance: Callable[[int], None] | None = None,
) -> Quality:
    """Score the photos of same pairs and see whether rejecting the worst helps.

    Args:
        embedder: the model.
        source: gives the crops once more, for SER-FIQ.
        found: embeddings with their norms: of f(photo) + f(mirror image) where mirror images were added.
        scored: the pairs, measured on `found`.
        batch: photos a batch.
        advance: called with the number of photos that SER-FIQ has done.

    Raises:
        UserError: no same pairs.
    """
    scores: dict[str, Mapping[Photo, float]] = {}
    left_out = {}
    if found.norms is None:
        left_out["norm"] = "the lengths of the embeddings are not known"
    elif np.ptp(found.norms) <= _SAME_LENGTH * found.norms.max():
        left_out["norm"] = "the embeddings all have the same length"
    else:
        scores["norm"] = dict(zip(found.photos, found.norms.tolist(), strict=True))
    reason = why_not(embedder)
    if reason is None:
        photos = same_pair_photos(scored)
        stable = ser_fiq(embedder, source, photos, batch=batch, advance=advance)
        scores["ser_fiq"] = dict(zip(photos, stable.tolist(), strict=True))
    else:
        left_out["ser_fiq"] = reason
    return reject_figures(scored, scores, left_out)


def same_pair_photos(scored: ScoredPairs) -> list[Photo]:
    """The photos of same pairs, each once."""
    return list(dict.fromkeys(photo for pair in scored.pairs if pair.same for photo in (pair.left, pair.right)))


def reject_figures(
    scored: ScoredPairs, scores: Mapping[str, Mapping[Photo, float]], left_out: Mapping[str, str]
) -> Quality:
    """Curves and areas.

    Args:
        scored: the pairs.
        scores: by name, the quality of each photo of a same pair, larger is better.
        left_out: measures that there are not, and why.

    Raises:
        UserError: no same pairs.
    """
    same = [pair for pair in scored.pairs if pair.same]
    distances = scored.distances[scored.same]
    threshold = start_threshold(distances)
    start = float(np.mean(distances >= threshold))
    measures = {}
    for name, worth in scores.items():
        left, right = (np.array([worth[getattr(pair, side)] for pair in same]) for side in ("left", "right"))
        curve = error_versus_reject(distances, np.ones(len(same), bool), left, right, threshold)
        measures[name] = _figures(curve)
    return Quality(
        protocol=(
            "same pairs with the worst photos rejected first, at the threshold that rejects "
            f"{100 * start:.3g} % of all same pairs (at least {100 * START_FNMR:g} %: whole pairs, and ties); "
            f"areas up to {100 * UP_TO:g} % rejected; SER-FIQ of {NUM_PASSES} passes, photos not mirrored"
        ),
        num_same=len(same),
        threshold=threshold,
        start_fnmr=start,
        up_to=UP_TO,
        area_of_chance=start * UP_TO,
        least_area=least_area(start, len(same), UP_TO),
        measures=measures,
        left_out=dict(left_out),
    )


def start_threshold(distances: Floats) -> float:
    """The threshold that rejects at least `START_FNMR` of the same pairs: a whole pair, and all that tie with it.

    Args:
        distances: [P] squared distances of same pairs; a pair is accepted below the threshold.

    Raises:
        UserError: no pairs.
    """
    if len(distances) == 0:
        raise UserError("pairs", "no same pairs", "at least one")
    failing = int(np.ceil(round(START_FNMR * len(distances), 6)))
    return float(np.sort(distances)[len(distances) - failing])


def _figures(curve: RejectCurve) -> RejectFigures:
    # For drawing only: a step of a quarter of a hundredth is not seen.
    kept = np.unique(np.linspace(0, len(curve.rejected) - 1, _CURVE_POINTS).round().astype(int))
    return RejectFigures(
        rejected=curve.rejected[kept].tolist(), fnmr=curve.fnmr[kept].tolist(), area=partial_area(curve, UP_TO)
    )
