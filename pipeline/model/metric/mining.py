"""Which negative meets which anchor-positive pair, from a block of anchors.

All functions give the negatives' columns [b, K], in the order of the block's positives, and which of them exist.
Distances rank as cosines do, the other way round, so all compare cosines.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.model.keyed import keyed_uniform
from pipeline.model.metric.anchors import AnchorBlock
from pipeline.model.metric.batch import GlobalBatch


def semi_hard(block: AnchorBlock, edge: Tensor) -> tuple[Tensor, Tensor]:
    """For each pair the nearest negative that is farther than the positive, if it is within the margin.

    d_ap < d_an < d_ap + α (FaceNet, Schroff et al. 2015, section 3.2, which leaves open which of them; the hardest, as
    it does elsewhere). An anchor's positives cut the line of cosines into intervals; each interval keeps its nearest
    negative, and a pair's is the nearest of the intervals beyond its positive: M·log K an anchor, and no sort.

    Args:
        edge: [b, K], the cosine at the far end of each pair's margin.
    """
    negatives = block.negative_cosine
    ladder, rung = torch.where(block.is_positive, block.positive_cosine, torch.inf).sort(dim=1)
    # on the right of equals: a negative as near as the positive is hard
    interval = torch.searchsorted(ladder, negatives, right=True)
    nearest = negatives.new_full((len(negatives), ladder.shape[1] + 1), -torch.inf)
    nearest.scatter_reduce_(1, interval, negatives, "amax")
    columns = _columns_of(negatives, interval, nearest)
    nearest, best = nearest[:, :-1].cummax(dim=1)
    back = rung.argsort(dim=1)
    nearest, columns = nearest.gather(1, back), columns.gather(1, best).gather(1, back)
    return columns, block.is_positive & (nearest > edge)


def hardest(block: AnchorBlock) -> tuple[Tensor, Tensor]:
    """For each pair the anchor's nearest negative."""
    cosine, columns = block.negative_cosine.max(dim=1, keepdim=True)
    return columns.expand_as(block.positive_columns), (cosine > -torch.inf) & block.is_positive


def random(block: AnchorBlock, batch: GlobalBatch, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """For each pair any negative of the batch, drawn by (seed, step, anchor's sample id, positive's sample id)."""
    own_size = block.own_stop - block.own_start
    num_negatives = (len(batch.labels) - own_size)[:, None]
    draw = keyed_uniform(seed, step, block.sample_ids[:, None], batch.sample_ids[block.positive_columns])
    place = (draw * num_negatives).long()
    # the batch is sorted by label, so the negatives are all columns but one run
    columns = place + (place >= block.own_start[:, None]) * own_size[:, None]
    exists = block.is_positive & (num_negatives > 0)
    return columns.where(exists, 0), exists


def batch_hard(block: AnchorBlock) -> tuple[Tensor, Tensor, Tensor]:
    """For each anchor its farthest positive and its nearest negative (Hermans et al. 2017, arXiv:1703.07737).

    Returns:
        The positives' places among the block's [b, 1], the negatives' columns [b, 1] and which triplets exist [b, 1].
    """
    farthest = torch.where(block.is_positive, block.positive_cosine, torch.inf).argmin(dim=1, keepdim=True)
    columns, exists = hardest(block)
    return farthest, columns[:, :1], exists.gather(1, farthest)


def _columns_of(negatives: Tensor, interval: Tensor, nearest: Tensor) -> Tensor:
    """Where each interval's nearest negative stands [b, K + 1], the last of equals; 0 for an empty interval."""
    row, column = (negatives == nearest.gather(1, interval)).nonzero(as_tuple=True)
    columns = torch.zeros_like(nearest, dtype=torch.int64)
    place = row * columns.shape[1] + interval[row, column]
    return columns.view(-1).scatter_reduce_(0, place, column, "amax").view_as(columns)
