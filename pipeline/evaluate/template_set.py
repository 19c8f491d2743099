"""Scores of template pairs: photos embedded in order, a row each, pooled into templates, compared in blocks.

Neither crops nor pairs are ever held all at once as objects; what is held is one float32 row a photo (1 GB for IJB-C's
469,375 photos and 512 numbers) and a few numbers a pair.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import overload

import numpy as np

from pipeline.config.errors import UserError
from pipeline.evaluate import templates, verification
from pipeline.evaluate.embed import Embedder, extract_embeddings
from pipeline.evaluate.pairs import Pair, Photo
from pipeline.evaluate.photos import PhotoSource
from pipeline.evaluate.run import ScoredPairs
from pipeline.evaluate.search import Vectors
from pipeline.evaluate.template_weights import TemplateWeights
from pipeline.evaluate.verification import Bools, Floats, Ints

_PHOTOS = 8192
"""Embedded at a time."""


@dataclass(frozen=True)
class TemplateSet:
    """Photos of templates, a row each, and pairs of templates."""

    photos: list[Photo]
    """Each once: where a photo stands in several rows, the number tells them apart."""
    template: Ints
    medium: Ints
    detector_score: Floats
    pairs: templates.TemplatePairs


@dataclass(frozen=True)
class EmbeddedRows:
    """Embeddings of photos, a row each."""

    vectors: Vectors
    """[N, D] float32, L2-normalised; zeros for photos without one."""
    norms: Floats
    """[N] their lengths before they were scaled; 0 for photos without one."""
    missing: dict[Photo, str]
    """Why a photo has none."""
    batch_ms: list[float] = field(default_factory=list)
    """As `Embeddings.batch_ms`."""

    @property
    def is_present(self) -> Bools:
        """[N] whether the photo has an embedding."""
        return self.norms > 0.0


class RepresentedPairs(Sequence[Pair]):
    """Pairs of templates as pairs of the first photo of each, made when they are asked for."""

    def __init__(self, photos: Sequence[Photo], left: Ints, right: Ints, same: Bools) -> None:
        """`left` and `right` are rows of `photos`."""
        self._photos, self._left, self._right, self._same = photos, left, right, same

    def __len__(self) -> int:
        return len(self._same)

    @overload
    def __getitem__(self, place: int) -> Pair: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Pair]: ...
    def __getitem__(self, place: int | slice) -> Pair | Sequence[Pair]:
        if isinstance(place, slice):
            return RepresentedPairs(self._photos, self._left[place], self._right[place], self._same[place])
        left, right = self._photos[self._left[place]], self._photos[self._right[place]]
        return Pair(left, right, 0, bool(self._same[place]))


def embed_rows(
    embedder: Embedder,
    source: PhotoSource,
    photos: Sequence[Photo],
    *,
    batch: int,
    flip: bool,
    advance: Callable[[int], None],
) -> EmbeddedRows:
    """Embed photos in order into one matrix; see `extract_embeddings` for the arguments and errors.

    Raises:
        UserError: none of the photos has a crop.
    """
    vectors: Vectors | None = None
    norms = np.zeros(len(photos))
    missing: dict[Photo, str] = {}
    batch_ms: list[float] = []
    for start in range(0, len(photos), _PHOTOS):
        part = photos[start : start + _PHOTOS]
        found = extract_embeddings(embedder, source, part, batch=batch, flip=flip, advance=advance)
        missing.update(found.missing)
        batch_ms += found.batch_ms
        if not found.photos:
            continue
        if vectors is None:
            vectors = np.zeros((len(photos), found.vectors.shape[1]), np.float32)
        assert found.norms is not None, "they were made here"
        rows = start + np.flatnonzero([photo not in found.missing for photo in part])
        vectors[rows], norms[rows] = found.vectors, found.norms
    if vectors is None:
        photo, reason = next(iter(missing.items()), ("none listed", "empty"))
        raise UserError("photos", f"none of {len(photos):,} can be used, the first {photo} ({reason})", "usable photos")
    return EmbeddedRows(vectors, norms, missing, batch_ms)


def score_templates(tests: TemplateSet, rows: EmbeddedRows, weights: TemplateWeights) -> ScoredPairs:
    """Pool templates and measure each pair whose templates both have a photo left.

    Args:
        tests: photos and pairs.
        rows: the photos' embeddings, in the order of `tests.photos`.
        weights: of photos within their template.

    Raises:
        UserError: no pair has both, or see `templates.pool`.
    """
    present = np.flatnonzero(rows.is_present)
    is_whole = len(present) == len(tests.photos)
    weight = np.ones(len(present))
    if weights in (TemplateWeights.norm_score, TemplateWeights.norm):
        weight = weight * rows.norms[present]
    if weights in (TemplateWeights.norm_score, TemplateWeights.score):
        weight = weight * tests.detector_score[present]
    vectors = rows.vectors if is_whole else rows.vectors[present]
    pooled = templates.pool(vectors, tests.template[present], tests.medium[present], weight)
    pairs = tests.pairs
    kept = np.isin(pairs.left, pooled.ids) & np.isin(pairs.right, pooled.ids)
    dropped = np.flatnonzero(~kept)
    is_known = np.isin(pairs.left[dropped], tests.template) & np.isin(pairs.right[dropped], tests.template)
    if not is_known.all():
        unknown = dropped[~is_known]
        found = f"{len(unknown):,} of {len(kept):,} name a template without a photo, first line {unknown[0] + 1}"
        raise UserError("pairs of templates", found, "templates of the list of faces")
    left, right, same = pairs.left[kept], pairs.right[kept], pairs.same[kept]
    first = present[np.unique(tests.template[present], return_index=True)[1]]
    shown = [first[np.searchsorted(pooled.ids, side)] for side in (left, right)]
    distances = np.clip(verification.squared_distance(templates.pair_scores(pooled, left, right)), 0.0, 4.0)
    return ScoredPairs(
        pairs=RepresentedPairs(tests.photos, shown[0], shown[1], same),
        distances=distances,
        same=same,
        fold=None,
        missing=rows.missing,
        num_photos=len(present),
        num_dropped=len(dropped),
        place=np.flatnonzero(kept),
        unit="template",
    )
