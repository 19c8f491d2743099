"""Verification where the second photo of each pair is degraded: curves over kinds and strengths.

Only one photo of a pair gets worse, as where a photo from a bad camera is compared with a good one on file: the setting
of cross-resolution recognition (Knoche, Hörmann & Rigoll 2021, XQLFW), and the cross verification of Sarıtaş & Ekenel
2024. Degrading both would also make photos alike that share nothing but their degradation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from pipeline.evaluate import verification
from pipeline.evaluate.degradation import UNITS, Degradation, DegradedPhotos, degradations, neutral_strength
from pipeline.evaluate.embed import Embedder, Embeddings, extract_embeddings
from pipeline.evaluate.pairs import Pair, Photo
from pipeline.evaluate.photos import Crop, PhotoSource, Rejected
from pipeline.evaluate.result_sections import Robustness, RobustnessCurve, RobustnessPoint
from pipeline.evaluate.run import ScoredPairs
from pipeline.evaluate.verification import Floats

_FAR = 1e-3
_PROTOCOL = (
    "the second photo of each pair degraded, the first as it is; accuracy by folds, at thresholds chosen on pairs "
    "degraded alike, and at the threshold that is best on the pairs as they are"
)


def measure_robustness(
    embedder: Embedder,
    source: PhotoSource,
    found: Embeddings,
    scored: ScoredPairs,
    *,
    batch: int,
    flip: bool,
    advance: Callable[[int], None] | None = None,
) -> Robustness:
    """Verify the same pairs under each degradation of `degradations`.

    Args:
        embedder: the model.
        source: gives the crops once more, each once.
        found: embeddings of the photos as they are.
        scored: the pairs, measured on `found`.
        batch: photos a batch.
        flip: as of `extract_embeddings`.
        advance: called with the number of photos done, each counted once a degradation; `count_photos` gives the sum.

    Raises:
        UserError: as `extract_embeddings`.
    """
    kinds = degradations(embedder.crop_px)
    distances = degraded_distances(
        embedder, source, found, scored.pairs, kinds, batch=batch, flip=flip, advance=advance
    )
    threshold, _ = verification.best_threshold(scored.distances, scored.same)
    points = [
        (one.kind, _point(one.strength, row, scored, threshold)) for one, row in zip(kinds, distances, strict=True)
    ]
    return Robustness(
        protocol=_PROTOCOL,
        num_probes=len(_probes(scored.pairs)),
        clean=_point(0.0, scored.distances, scored, threshold),
        clean_threshold=threshold,
        curves=[
            RobustnessCurve(
                kind=kind,
                unit=UNITS[kind],
                neutral=neutral_strength(kind, embedder.crop_px),
                points=[point for own, point in points if own == kind],
            )
            for kind in dict.fromkeys(one.kind for one in kinds)
        ],
    )


def count_photos(pairs: Sequence[Pair], crop_px: int) -> int:
    """How many photos `measure_robustness` embeds."""
    return len(_probes(pairs)) * len(degradations(crop_px))


def degraded_distances(
    embedder: Embedder,
    source: PhotoSource,
    found: Embeddings,
    pairs: Sequence[Pair],
    kinds: Sequence[Degradation],
    *,
    batch: int,
    flip: bool,
    advance: Callable[[int], None] | None = None,
) -> Floats:
    """[len(kinds), P] squared distances between first photos as they are and second photos degraded.

    Photos are read once and embeddings are kept no longer than a batch lasts.
    """
    row = {photo: number for number, photo in enumerate(found.photos)}
    left = np.array([row[pair.left] for pair in pairs], np.int64)
    probes = _probes(pairs)
    place = {photo: number for number, photo in enumerate(probes)}
    probe = np.array([place[pair.right] for pair in pairs], np.int64)
    distances = np.empty((len(kinds), len(pairs)), np.float64)
    for start in range(0, len(probes), batch):
        photos = probes[start : start + batch]
        held = _Held(source, photos)
        own = np.flatnonzero((probe >= start) & (probe < start + batch))
        for number, kind in enumerate(kinds):
            degraded = extract_embeddings(embedder, DegradedPhotos(held, kind), photos, batch=batch, flip=flip)
            assert degraded.photos == photos, "they were embedded a moment ago"
            distances[number, own] = verification.squared_distances_between(
                found.vectors, degraded.vectors, left[own], probe[own] - start
            )
            if advance is not None:
                advance(len(photos))
    return distances


class _Held:
    """Crops in memory."""

    def __init__(self, source: PhotoSource, photos: Sequence[Photo]) -> None:
        self._crops = {photo: source.load(photo) for photo in photos}

    def load(self, photo: Photo) -> Crop | Rejected:
        return self._crops[photo]


def _probes(pairs: Sequence[Pair]) -> list[Photo]:
    """The second photos, each once."""
    return list(dict.fromkeys(pair.right for pair in pairs))


def _point(strength: float, distances: Floats, scored: ScoredPairs, threshold: float) -> RobustnessPoint:
    assert scored.fold is not None, "templates are not degraded"
    folds = verification.fold_accuracy(distances, scored.same, scored.fold)
    fixed = verification.at_threshold(distances, scored.same, threshold)
    assert fixed.far is not None
    assert fixed.tar is not None
    accepted = verification.true_accept_rate(verification.roc_curve(distances, scored.same), _FAR)
    return RobustnessPoint(
        strength=strength,
        accuracy=folds.mean,
        std=folds.std,
        accuracy_at_clean_threshold=fixed.accuracy,
        far_at_clean_threshold=fixed.far,
        tar_at_clean_threshold=fixed.tar,
        tar_at_far_1e_3=None if accepted is None else accepted.tar,
    )
