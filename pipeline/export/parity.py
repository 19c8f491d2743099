"""Whether an exported file still does what the trained model does, on real crops."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.config.errors import UserError
from pipeline.evaluate import verification
from pipeline.evaluate.embed import Embedder, Embeddings, extract_embeddings
from pipeline.evaluate.pairs import PairList
from pipeline.evaluate.photos import PhotoSource, Rejected
from pipeline.evaluate.run import score_embeddings

DRAWN_PAIRS_PER_FOLD = 50
"""Of each kind: 1,000 pairs resolve a tenth of a point, and take a sixth of the time of all that are drawn."""
_BATCH = 32
_TIMED_CALLS = 10


@dataclass(frozen=True)
class Bounds:
    """How far an exported file may be from its model."""

    cosine_distance: float
    """1 − cosine of a photo's two embeddings, at most."""
    accuracy: float
    """How far the 10-fold accuracy may fall; a rise does no harm, and is chance."""


BOUNDS = {"fp32": Bounds(1e-5, 0.002), "fp16": Bounds(1e-3, 0.005), "int8": Bounds(0.05, 0.01)}


@dataclass(frozen=True)
class Measured:
    """A model on the test's photos."""

    embeddings: Embeddings
    accuracy: float
    """10-fold."""
    num_pairs: int
    """With both photos."""
    ms_per_photo: float
    """Median over single photos, on the CPU."""


@dataclass(frozen=True)
class Parity:
    """An exported file beside the model it was made from."""

    num_photos: int
    num_pairs: int
    max_cosine_distance: float
    mean_cosine_distance: float
    accuracy: float
    """Of the exported file."""
    trained_accuracy: float
    ms_per_photo: float
    """Of the exported file."""
    trained_ms_per_photo: float
    bounds: Bounds

    @property
    def accuracy_difference(self) -> float:
        return self.accuracy - self.trained_accuracy

    def sentence(self) -> str:
        """The figures with their bounds."""
        return (
            f"max |Δcos| {self.max_cosine_distance:.2g} (bound {self.bounds.cosine_distance:g}) over "
            f"{self.num_photos:,} photos, accuracy {self.accuracy:.4f} against {self.trained_accuracy:.4f} on "
            f"{self.num_pairs:,} pairs (bound {self.bounds.accuracy:g})"
        )


def thin_drawn(pairs: PairList) -> PairList:
    """The first pairs of each kind in each fold of a drawn list."""
    kept: dict[tuple[int, bool], int] = {}
    thinned = []
    for pair in pairs.pairs:
        kind = (pair.fold, pair.same)
        kept[kind] = kept.get(kind, 0) + 1
        if kept[kind] <= DRAWN_PAIRS_PER_FOLD:
            thinned.append(pair)
    return PairList(thinned, pairs.num_folds)


def measure(
    embedder: Embedder, source: PhotoSource, pairs: PairList, advance: Callable[[int], None] | None = None
) -> Measured:
    """Embed the pairs' photos, without mirror images, and score the pairs.

    Raises:
        UserError: embeddings that are not finite, or no pair with both photos.
    """
    photos = pairs.photos()
    found = extract_embeddings(embedder, source, photos, batch=_BATCH, flip=False, advance=advance)
    scored = score_embeddings(found, pairs, len(photos))
    assert scored.fold is not None, "a pair list has folds"
    folds = verification.fold_accuracy(scored.distances, scored.same, scored.fold)
    return Measured(found, folds.mean, len(scored.pairs), _ms_per_photo(embedder, source, found))


def compare(exported: Embedder, source: PhotoSource, trained: Measured, measured: Measured, bounds: Bounds) -> Parity:
    """Set an exported file's figures beside the model's; one photo is embedded by itself, for files whose batch is not
    free after all.

    Args:
        exported: the file.
        source: as `measure` had it.
        trained: of the model.
        measured: of the file.
        bounds: of its precision.
    """
    reference = trained.embeddings.vectors
    alone = extract_embeddings(exported, source, measured.embeddings.photos[:1], batch=1, flip=False)
    cosines = np.concatenate(
        [(measured.embeddings.vectors * reference).sum(axis=1), (alone.vectors * reference[:1]).sum(axis=1)]
    )
    return Parity(
        num_photos=len(reference),
        num_pairs=measured.num_pairs,
        max_cosine_distance=float(np.max(1.0 - cosines)),
        mean_cosine_distance=float(np.mean(1.0 - cosines)),
        accuracy=measured.accuracy,
        trained_accuracy=trained.accuracy,
        ms_per_photo=measured.ms_per_photo,
        trained_ms_per_photo=trained.ms_per_photo,
        bounds=bounds,
    )


def require_parity(parity: Parity, where: object, remedy: str) -> None:
    """Refuse a file that is further from its model than its bounds allow.

    Raises:
        UserError: it is.
    """
    is_far = not parity.max_cosine_distance <= parity.bounds.cosine_distance
    # the difference of two means of tenths: rounding must not push an exact bound over itself
    is_worse = parity.accuracy_difference < -parity.bounds.accuracy - 1e-9
    if is_far or is_worse:
        raise UserError(where, f"not written, it differs from the model: {parity.sentence()}", "", remedy)


def _ms_per_photo(embedder: Embedder, source: PhotoSource, found: Embeddings) -> float:
    crop = source.load(found.photos[0])
    assert not isinstance(crop, Rejected)
    image = torch.from_numpy(crop).permute(2, 0, 1)[None]
    seconds = []
    with torch.inference_mode():
        for _ in range(_TIMED_CALLS):
            started = time.perf_counter()
            embedder.embed(image)
            seconds.append(time.perf_counter() - started)
    return float(np.median(seconds)) * 1e3
