"""What the walk over the anchors shows of the batch, whatever the loss: distances, their spread, collapse."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.model.metric.anchors import AnchorBlock
from pipeline.model.metric.batch import GlobalBatch
from pipeline.model.metric.distances import distance
from pipeline.model.metric.sums import Tally

NUM_BINS = 200
"""Of the histograms of distances, which reach from 0 to 2: quantiles are exact to 0.01."""
NUM_NEGATIVE_COLUMNS = 1024
"""Negative distances are counted in so many evenly spaced columns of the gallery at the most."""
QUANTILES = (10, 50, 90)

SIZES = {
    "positive_distance_sum": 1,
    "positive_distance_count": 1,
    "positive_distance_bins": NUM_BINS,
    "negative_distance_sum": 1,
    "negative_distance_count": 1,
    "negative_distance_bins": NUM_BINS,
}
"""What a tally must have room for."""


def observe_block(block: AnchorBlock, tally: Tally) -> None:
    """Count a block's distances into the tally."""
    stride = -(-block.negative_cosine.shape[1] // NUM_NEGATIVE_COLUMNS)
    positives = torch.where(block.is_positive, block.positive_cosine, -torch.inf)
    for name, cosine in (("positive", positives), ("negative", block.negative_cosine[:, ::stride])):
        # cosines of no pair are −inf, their distances infinite and in no bin
        d = distance(cosine)
        is_pair = d < torch.inf
        tally.add(f"{name}_distance_sum", torch.where(is_pair, d, 0).sum())
        tally.add(f"{name}_distance_count", is_pair.sum())
        tally.add(f"{name}_distance_bins", torch.histc(d.clamp(max=2).where(is_pair, -1), NUM_BINS, 0, 2))


def batch_figures(batch: GlobalBatch, tally: Tally) -> dict[str, Tensor]:
    """Metrics of a joined tally and of the batch as a whole: float64 scalars, the same on all ranks."""
    figures = {
        "embedding_norm": batch.mean_norm,
        "pairwise_distance_rms": pairwise_distance_rms(batch.unit),
        "num_positive_pairs": tally["positive_distance_count"],
    }
    for name in ("positive_distance", "negative_distance"):
        figures[name] = tally.mean(f"{name}_sum", f"{name}_count")
        for percent in QUANTILES:
            figures[f"{name}_q{percent}"] = _quantile(tally[f"{name}_bins"], percent / 100)
    return figures


def pairwise_distance_rms(unit: Tensor) -> Tensor:
    """Root of the mean squared distance of all pairs [scalar], from the embeddings' sum: 0 when all are one point.

    Σ over ordered pairs of d² = 2·(n·Σ|x|² − |Σx|²).
    """
    unit = unit.double()
    num = len(unit)
    total = 2 * (num * unit.square().sum() - unit.sum(0).square().sum())
    return (total.clamp(min=0) / max(1, num * (num - 1))).sqrt()


def _quantile(bins: Tensor, share: float) -> Tensor:
    """Middle of the bin that holds the quantile; 0 if all bins are empty."""
    below = bins.cumsum(0)
    place = torch.searchsorted(below, share * below[-1]).clamp(max=NUM_BINS - 1)
    return torch.where(below[-1] > 0, (place + 0.5) * (2 / NUM_BINS), 0)
