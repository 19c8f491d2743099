"""From photos to embeddings: reading ahead, flip averaging, normalisation."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from pipeline.config.errors import UserError
from pipeline.evaluate.pairs import Photo
from pipeline.evaluate.photos import Crop, PhotoSource, Rejected
from pipeline.evaluate.stored import StoredEmbeddings

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
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="crops") as pool:
        ahead = pool.submit(_load, source, chunks[0]) if chunks else None
        for number, chunk in enumerate(chunks):
            assert ahead is not None
            loaded = ahead.result()
            if number + 1 < len(chunks):
                ahead = pool.submit(_load, source, chunks[number + 1])
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


def _load(source: PhotoSource, photos: Sequence[Photo]) -> list[Crop | Rejected]:
    return [source.load(photo) for photo in photos]


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
    norms = np.linalg.norm(raw, axis=1, keepdims=True)
    bad = ~np.isfinite(raw).all(axis=1) | ~(norms[:, 0] > _SMALLEST_NORM)
    if bad.any():
        first = photos[int(np.argmax(bad))]
        found = f"{int(bad.sum())} of {len(photos)} embeddings are not finite or zero, first that of {first}"
        raise UserError(embedder.where, found, "finite embeddings")
    return raw / norms, norms[:, 0]
