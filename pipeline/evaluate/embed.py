"""From photos to embeddings: reading ahead, flip averaging, normalisation."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from pipeline.config.errors import UserError
from pipeline.evaluate.pairs import Photo
from pipeline.evaluate.photos import Crop, PhotoSource, Rejected
from pipeline.evaluate.stored import StoredEmbeddings
from pipeline.read_ahead import read_ahead

EmbedFn: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
"""uint8 [B, 3, H, W] RGB on the model's device to float [B, D]; the model normalises pixels itself."""

_SMALLEST_NORM = 1e-12


@dataclass(frozen=True)
class Embedder:
    """A model as evaluation sees it, whatever made it."""

    embed: EmbedFn
    crop_px: int
    device: torch.device
    where: str
    """What to name in messages: the checkpoint's path."""
    stored: StoredEmbeddings | None = None
    """Embeddings made elsewhere: photos are looked up there, and `embed` is not called."""


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of the photos that had a crop, and why the others had none."""

    photos: list[Photo]
    vectors: npt.NDArray[np.float64]
    """[N, D], L2-normalised; row i belongs to `photos[i]`."""
    missing: dict[Photo, str]
    norms: npt.NDArray[np.float64] | None = None
    """[N] what the vectors' lengths were before normalising; None where that is not known."""
    batch_ms: list[float] = field(default_factory=list)
    """Of each batch, milliseconds a photo in the model and on the way to its device and back; reading is not in it."""


def extract_embeddings(
    embedder: Embedder,
    source: PhotoSource,
    photos: Sequence[Photo],
    *,
    batch: int,
    flip: bool = True,
    advance: Callable[[int], None] | None = None,
) -> Embeddings:
    """Embed photos in batches; the next batch is read while the model works on this one.

    Args:
        embedder: the model.
        source: gives the crops; it is called from one other thread.
        photos: which photos, each once.
        batch: photos a batch.
        flip: add the mirror image's embedding before normalising, f(x) + f(flip x), as InsightFace does.
        advance: called with the number of photos done after each batch, for a progress bar.

    Raises:
        UserError: a crop of another size than the model's, or an embedding that is not finite or is zero.
    """
    if embedder.stored is not None:
        return _look_up(embedder.stored, source, photos, advance)
    kept: list[Photo] = []
    vectors: list[npt.NDArray[np.float64]] = []
    norms: list[npt.NDArray[np.float64]] = []
    missing: dict[Photo, str] = {}
    batch_ms: list[float] = []
    chunks = [photos[start : start + batch] for start in range(0, len(photos), batch)]
    loading = read_ahead(lambda chunk: [source.load(photo) for photo in chunk], chunks)
    for chunk, loaded in zip(chunks, loading, strict=True):
        usable: list[Photo] = []
        crops: list[Crop] = []
        for photo, crop in zip(chunk, loaded, strict=True):
            if isinstance(crop, Rejected):
                missing[photo] = crop.reason
                continue
            _require_size(crop, embedder, photo)
            usable.append(photo)
            crops.append(crop)
        if usable:
            started = time.perf_counter()
            embedded, length = _embed(embedder, np.stack(crops), usable, flip)
            batch_ms.append(1000.0 * (time.perf_counter() - started) / len(usable))
            vectors.append(embedded)
            norms.append(length)
            kept.extend(usable)
        if advance is not None:
            advance(len(chunk))
    stacked = np.concatenate(vectors) if vectors else np.empty((0, 0), np.float64)
    lengths = np.concatenate(norms) if norms else np.empty(0, np.float64)
    return Embeddings(photos=kept, vectors=stacked, missing=missing, norms=lengths, batch_ms=batch_ms)


def _look_up(
    stored: StoredEmbeddings, source: PhotoSource, photos: Sequence[Photo], advance: Callable[[int], None] | None
) -> Embeddings:
    kept, raw, missing = stored.find(source, photos)
    if advance is not None:
        advance(len(photos))
    norms = np.linalg.norm(raw, axis=1)
    return Embeddings(photos=kept, vectors=raw / norms[:, None], missing=missing, norms=norms)


def _require_size(crop: Crop, embedder: Embedder, photo: Photo) -> None:
    expected = (embedder.crop_px, embedder.crop_px, 3)
    if crop.shape != expected:
        raise UserError(
            photo,
            f"a crop of {crop.shape[1]}x{crop.shape[0]} px",
            f"{embedder.crop_px}x{embedder.crop_px} px as {embedder.where} was trained on",
            f"preprocess shard … --size {embedder.crop_px}",
        )


def _embed(
    embedder: Embedder, crops: Crop, photos: Sequence[Photo], flip: bool
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """[B, H, W, 3] uint8 to L2-normalised [B, D] float64, and the [B] lengths before."""
    images = torch.from_numpy(crops).permute(0, 3, 1, 2).to(embedder.device)
    with torch.inference_mode():
        vectors = embedder.embed(images)
        if flip:
            vectors = vectors + embedder.embed(images.flip(-1))
    # float64 from here on, as the reference protocol: distances near a threshold must not depend on rounding.
    raw: npt.NDArray[np.float64] = vectors.to("cpu", torch.float64).numpy()
    norms = require_usable(raw, lambda row: str(photos[row]), embedder.where)
    return raw / norms[:, None], norms


def require_usable(
    vectors: npt.NDArray[np.float64], name: Callable[[int], str], where: object
) -> npt.NDArray[np.float64]:
    """The lengths [N] of embeddings.

    Args:
        vectors: [N, D].
        name: gives the name of a row's photo, for messages.
        where: the model, as messages name it.

    Raises:
        UserError: an embedding is not finite or is zero.
    """
    norms = np.linalg.norm(vectors, axis=1)
    bad = ~np.isfinite(vectors).all(axis=1) | ~(norms > _SMALLEST_NORM)
    if bad.any():
        first = name(int(np.argmax(bad)))
        found = f"{int(bad.sum())} of {len(bad)} embeddings are not finite or zero, first that of {first}"
        raise UserError(where, found, "finite embeddings")
    return norms
