"""Semi-hard triplets over embeddings of two models at once, mined and differentiated block by block.

The pool holds each photo twice, as the new and as the old model embeds it. All anchor–positive pairs of the pool are
taken, each with the nearest negative of the pool that is farther than the positive by less than the margin:

    loss of a triplet = d²_ap − d²_an + α,   d² = 2 − 2·cos

Triplets of old embeddings alone teach nothing and are left out. A block of anchors at a time gives its distances
[b, 2N] and is dropped. A triplet's loss being linear in its two distances, the block also gives its part of the
gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline import dist


@dataclass(frozen=True)
class MixedTriplets:
    """What this rank's share of the anchors gives."""

    total: Tensor
    """Scalar with a graph: sum of the triplets' losses."""
    num_triplets: Tensor
    """Scalar int64."""
    num_pairs: Tensor
    """Scalar int64: pairs of anchor and positive for which a triplet was sought."""


def mixed_triplets(
    new: Tensor, old: Tensor, labels: Tensor, valid: Tensor, margin: float, block_rows: int
) -> MixedTriplets:
    """Mine this rank's share of the anchors and sum up their triplets' losses. Not collective; differentiable once.

    Args:
        new: [N, D] of all ranks, unit length, the same on all ranks; what is differentiated for.
        old: [N, D] of all ranks, unit length, of the same crops, frozen.
        labels: [N] int64.
        valid: [N] bool; other slots are in no triplet.
        margin: α.
        block_rows: photos a block.

    Returns:
        This rank's sums. Each anchor belongs to one rank, so the ranks' sums add up to those of the pool.
    """
    return MixedTriplets(*_MixedTriplets.apply(new, old, labels, valid, margin, block_rows))


class _MixedTriplets(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, new: Tensor, old: Tensor, labels: Tensor, valid: Tensor, margin: float, block_rows: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        num_photos = len(new)
        pool = torch.cat([new, old])
        gradient = torch.zeros_like(new)
        total = new.new_zeros(())
        num_triplets, num_pairs = labels.new_zeros(()), labels.new_zeros(())
        first, end = dist.partition(num_photos, dist.rank(), dist.world_size())
        for start in range(first, end, block_rows):
            photos = torch.arange(start, min(start + block_rows, end), device=new.device)
            both_valid = valid[photos, None] & valid
            same = labels[photos, None] == labels
            positive, negative = (same & both_valid).repeat(1, 2), (~same & both_valid).repeat(1, 2)
            for is_new in (True, False):
                anchors = (new if is_new else old)[photos]
                distances = 2 - 2 * anchors @ pool.t()
                is_positive = positive.clone()
                # not the anchor itself, but the same photo as the other model sees it
                is_positive.scatter_(1, (photos if is_new else photos + num_photos)[:, None], False)
                weights = torch.zeros_like(distances)
                total += _mine(distances, is_positive, negative, num_photos, is_new, margin, weights)
                num_pairs += is_positive.sum()
                num_triplets += (weights > 0).sum()
                if is_new:
                    gradient[photos] -= 2 * weights @ pool
                gradient -= 2 * weights[:, :num_photos].t() @ anchors
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(num_triplets, num_pairs)
        return total, num_triplets, num_pairs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * gradients[0], None, None, None, None, None


def _mine(
    distances: Tensor,
    positive: Tensor,
    negative: Tensor,
    num_photos: int,
    is_new: bool,
    margin: float,
    weights: Tensor,
) -> Tensor:
    """Find the triplets of a block of anchors, all new or all old.

    Args:
        distances: [b, 2N], squared; `positive` and `negative` [b, 2N] say which count as what.
        weights: [b, 2N] zeros, to which the derivatives of the losses' sum by `distances` are added.

    Returns:
        The losses' sum.
    """
    total = distances.new_zeros(())
    far = distances.masked_fill(~negative, torch.inf)
    num_positives = positive.sum(1)
    # a pass over the block for each positive of the anchor with the most: sorting the block would cost more
    columns = positive.float().topk(int(num_positives.max()), dim=1).indices
    for rank, column in enumerate(columns.t()):
        exists = rank < num_positives
        pair = distances.gather(1, column[:, None])
        farther = far.masked_fill(far <= pair, torch.inf)
        nearest, places = farther.view(-1, 2, num_photos).min(2)
        if not is_new:
            nearest[:, 1].masked_fill_(column >= num_photos, torch.inf)  # no triplet of old embeddings alone
        half = nearest.argmin(1, keepdim=True)
        losses = pair + margin - nearest.gather(1, half)
        is_triplet = (exists[:, None] & (losses > 0)).to(losses.dtype)
        # an infinite distance gives −inf, which times zero would be NaN
        total += losses.clamp(min=0).mul(is_triplet).sum()
        weights.scatter_add_(1, column[:, None], is_triplet)
        weights.scatter_add_(1, places.gather(1, half) + half * num_photos, -is_triplet)
    return total
