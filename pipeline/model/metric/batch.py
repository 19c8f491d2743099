"""The global batch as a metric loss sees it: valid slots of all ranks, of unit length, sorted by label."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline import dist
from pipeline.model.labels import check_labels

MIN_NORM = 1e-12
"""Shorter embeddings are taken for zero: they stay as they are, and their gradient finite."""


@dataclass(frozen=True)
class GlobalBatch:
    """The n valid samples of all ranks, by label and then sample id: the same on every rank, whatever their number."""

    gathered: Tensor
    """[N, D], of unit length, all slots in order of ranks, with a graph; zero where masked."""
    slots: Tensor
    """[n] int64, where the samples below stand in `gathered`."""
    unit: Tensor
    """[n, D], without a graph."""
    labels: Tensor
    """[n] int64, ascending: so a label's samples are neighbours, and masks are made where labels meet only."""
    sample_ids: Tensor
    """[n] int64."""
    first_anchor: int
    """This rank's share of the anchors begins here ..."""
    last_anchor: int
    """... and ends before here."""
    mean_norm: Tensor
    """Scalar, of the embeddings as they came; not finite if any of them is not."""

    def scatter(self, values: Tensor) -> Tensor:
        """From the samples' order, [n, ...], back to the slots' order, [N, ...], zero where masked."""
        return values.new_zeros(len(self.gathered), *values.shape[1:]).index_copy_(0, self.slots, values)


def gather_batch(
    embeddings: Tensor, labels: Tensor, sample_ids: Tensor, valid: Tensor, num_classes: int, dtype: torch.dtype
) -> GlobalBatch:
    """Normalise, gather and sort. Collective; the arguments are those of `Head.forward`.

    Raises:
        UserError: a valid slot's label is no class; on all ranks.
    """
    facts = dist.all_gather_rows(torch.stack([labels, sample_ids, valid.long()], dim=1))
    is_valid = facts[:, 2].bool()
    check_labels(facts[:, 0], facts[:, 1], is_valid, num_classes)
    # zeroed before any arithmetic, forward and backward: NaN times zero would be NaN
    embeddings = embeddings.to(dtype).masked_fill(~valid[:, None], 0)
    norm = torch.linalg.vector_norm(embeddings, dim=1, keepdim=True)
    gathered = dist.all_gather_rows(embeddings / norm.masked_fill(norm < MIN_NORM, 1))
    norm_sum = dist.all_reduce_sum(norm.detach().double().sum())
    slots = is_valid.nonzero().squeeze(1)
    # two stable sorts: by sample id, then by label
    slots = slots[facts[slots, 1].argsort(stable=True)]
    slots = slots[facts[slots, 0].argsort(stable=True)]
    first_anchor, last_anchor = dist.partition(len(slots), dist.rank(), dist.world_size())
    return GlobalBatch(
        gathered=gathered,
        slots=slots,
        unit=gathered.detach()[slots],
        labels=facts[slots, 0],
        sample_ids=facts[slots, 1],
        first_anchor=first_anchor,
        last_anchor=last_anchor,
        mean_norm=norm_sum / max(1, len(slots)),
    )
