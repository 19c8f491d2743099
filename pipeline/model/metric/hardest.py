"""The hardest examples of a whole set of embeddings: each anchor's farthest positive and nearest negatives."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline import dist
from pipeline.model.metric.anchors import BLOCK_BYTES_CPU, BLOCK_BYTES_GPU


@dataclass(frozen=True)
class HardestExamples:
    """One line for each anchor that has a positive and enough negatives; the same on all ranks."""

    members: Tensor
    """[A, 2 + k] int64, places in the set: anchor, farthest positive, nearest negatives from the nearest on."""
    positive_cosine: Tensor
    """[A] float32."""
    negative_cosine: Tensor
    """[A] float32, of the nearest negative."""


@torch.no_grad()
def hardest_examples(
    unit: Tensor, labels: Tensor, num_negatives: int, block_bytes: int | None = None
) -> HardestExamples:
    """Compare all embeddings with all others, a block of anchors at a time. Collective on all ranks.

    Memory is that of the set and of a block. Blocks do not depend on the number of ranks, which take whole ones: so
    neither do the last bits of a cosine, nor the result.

    Args:
        unit: [S, D] float32, of unit length, the same on all ranks.
        labels: [S] int64, ascending.
        num_negatives: k, for each anchor.
        block_bytes: memory of a block's cosines; None chooses by device.
    """
    size = len(labels)
    members = torch.zeros(size, 1 + num_negatives, dtype=torch.int64, device=unit.device)
    cosines = torch.zeros(size, 2, device=unit.device)
    if size <= num_negatives:  # nobody has so many, and topk would not take it
        return HardestExamples(members.new_zeros(0, 2 + num_negatives), *cosines.new_zeros(2, 0))
    if block_bytes is None:
        block_bytes = BLOCK_BYTES_CPU if unit.device.type == "cpu" else BLOCK_BYTES_GPU
    block_rows = max(1, block_bytes // (4 * size))
    num_blocks = -(-size // block_rows)
    rank, world_size = dist.rank(), dist.world_size()
    for block in range(num_blocks * rank // world_size, num_blocks * (rank + 1) // world_size):
        rows = slice(block * block_rows, min(size, (block + 1) * block_rows))
        members[rows], cosines[rows] = _search(unit, labels, rows, num_negatives)
    # each rank has zeros where others worked
    members, cosines = dist.all_reduce_sum(members), dist.all_reduce_sum(cosines)
    found = cosines.isfinite().all(1).nonzero()
    return HardestExamples(
        members=torch.cat([found, members[found[:, 0]]], 1),
        positive_cosine=cosines[found[:, 0], 0],
        negative_cosine=cosines[found[:, 0], 1],
    )


def _search(unit: Tensor, labels: Tensor, rows: slice, num_negatives: int) -> tuple[Tensor, Tensor]:
    """Places [b, 1 + k] and cosines [b, 2] of a block's farthest positives and nearest negatives; a cosine is infinite
    where an anchor has no positive or fewer than k negatives."""
    own = labels[rows]
    cosine = unit[rows] @ unit.t()
    # labels ascend: the block's own people are one run of columns, the only ones where masks are needed
    first = int(torch.searchsorted(labels, own[:1]))
    window = slice(first, int(torch.searchsorted(labels, own[-1:], right=True)))
    is_same = own[:, None] == labels[window]
    places = torch.arange(rows.start, rows.stop, device=labels.device)
    is_positive = is_same & (places[:, None] != torch.arange(window.start, window.stop, device=labels.device))
    positive_cosine, positive = cosine[:, window].where(is_positive, torch.inf).min(1)
    cosine[:, window].masked_fill_(is_same, -torch.inf)
    negative_cosine, negatives = cosine.topk(num_negatives, dim=1)
    # the last of k is finite only if all are
    nearest = negative_cosine[:, 0].where(negative_cosine[:, -1].isfinite(), -torch.inf)
    return torch.cat([positive[:, None] + first, negatives], 1), torch.stack([positive_cosine, nearest], 1)
