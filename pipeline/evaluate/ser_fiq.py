"""SER-FIQ: how little a photo's embedding moves under dropout (Terhörst et al. 2020, arXiv:2003.09373).

A photo is embedded m times, each time with other values of the neck's input left out; the nearer the embeddings lie to
each other, the better the photo. That is the paper's variant without training, which takes a model that was trained
with dropout. Only what follows the dropout is computed m times.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.evaluate.embed import Embedder
from pipeline.evaluate.pairs import Photo
from pipeline.evaluate.photos import PhotoSource, Rejected
from pipeline.evaluate.verification import Floats
from pipeline.model.backbones.neck import Neck

NUM_PASSES = 100
"""m, as in the paper's experiments."""


def why_not(embedder: Embedder) -> str | None:
    """Why a model has no SER-FIQ score, or None where it has one."""
    neck = _find_neck(embedder)
    if neck is None:
        return "it takes a model trained here: of others, the layer with dropout is not known"
    if not isinstance(neck.dropout, nn.Dropout) or neck.dropout.p == 0:
        return "the model was trained without dropout before its embedding"
    return None


def ser_fiq(
    embedder: Embedder,
    source: PhotoSource,
    photos: Sequence[Photo],
    *,
    batch: int,
    num_passes: int = NUM_PASSES,
    seed: int = 0,
    advance: Callable[[int], None] | None = None,
) -> Floats:
    """Score photos.

    All photos meet the same `num_passes` masks, drawn once by `seed`, at the rate that the model was trained with: a
    score depends neither on the other photos nor on the batch.

    Args:
        embedder: a model for which `why_not` gives None.
        source: gives the crops once more.
        photos: that have one.
        batch: photos a batch.
        num_passes: m.
        seed: of the masks.
        advance: called with the number of photos done.

    Returns:
        [N] float64 in (0, 1], larger is better.
    """
    neck = _find_neck(embedder)
    assert neck is not None
    assert isinstance(neck.dropout, nn.Dropout)
    dropout, rate = neck.dropout, neck.dropout.p
    masked = _Masked()
    masks: Tensor | None = None
    scores = []
    for start in range(0, len(photos), batch):
        chunk = photos[start : start + batch]
        with torch.inference_mode():
            inputs = _neck_inputs(embedder, neck, _images(source, chunk).to(embedder.device))
            if masks is None:
                masks = _draw_masks(num_passes, tuple(inputs.shape[1:]), rate, seed).to(inputs.device)
            neck.dropout = masked
            try:
                passes = []
                for mask in masks:
                    masked.mask = mask
                    passes.append(neck(inputs).double())
            finally:
                neck.dropout = dropout
            scores.append(stability(torch.stack(passes, dim=1)).cpu().numpy())
        if advance is not None:
            advance(len(chunk))
    return np.concatenate(scores) if scores else np.empty(0, np.float64)


def stability(embeddings: Tensor) -> Tensor:
    """2 · sigmoid(− mean Euclidean distance between two of a photo's embeddings), equation 1 of the paper.

    The mean is over the m (m − 1) / 2 pairs, as in its authors' program; the paper's sum divides by m² / 2.

    Args:
        embeddings: [B, m, D] float64, m at least 2, scaled to length 1 here.

    Returns:
        [B] in (0, 1]: 1 where all m are the same.
    """
    unit = nn.functional.normalize(embeddings, dim=2)
    num_passes = unit.shape[1]
    first, second = torch.triu_indices(num_passes, num_passes, 1, device=unit.device)
    cosines = torch.bmm(unit, unit.transpose(1, 2))[:, first, second]
    distances = (2.0 - 2.0 * cosines).clamp(min=0.0).sqrt()
    return 2.0 * torch.sigmoid(-distances.mean(dim=1))


class _Masked(nn.Module):
    """Stands in for dropout: the same mask for each photo."""

    mask: Tensor

    def forward(self, values: Tensor) -> Tensor:
        return values * self.mask


def _find_neck(embedder: Embedder) -> Neck | None:
    if not isinstance(embedder.embed, nn.Module):
        return None
    return next((module for module in embedder.embed.modules() if isinstance(module, Neck)), None)


def _neck_inputs(embedder: Embedder, neck: Neck, images: Tensor) -> Tensor:
    caught: list[Tensor] = []
    handle = neck.register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0]))
    try:
        embedder.embed(images)
    finally:
        handle.remove()
    return caught[0]


def _draw_masks(num_passes: int, shape: tuple[int, ...], rate: float, seed: int) -> Tensor:
    """[m, *shape] float32: 0 at this rate, else what keeps the mean. RandomState's stream is frozen."""
    drawn = np.random.RandomState(seed).random_sample((num_passes, math.prod(shape)))
    return torch.from_numpy(((drawn >= rate) / (1.0 - rate)).astype(np.float32)).reshape(num_passes, *shape)


def _images(source: PhotoSource, photos: Sequence[Photo]) -> Tensor:
    """[B, 3, H, W] uint8."""
    crops = []
    for photo in photos:
        crop = source.load(photo)
        assert not isinstance(crop, Rejected), "it was embedded a moment ago"
        crops.append(crop)
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)
