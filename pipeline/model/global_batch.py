"""The batch of all ranks, for heads that look at all of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline import dist
from pipeline.model.labels import check_labels


@dataclass(frozen=True)
class Slots:
    """What is known of the global batch's N slots, the same on all ranks."""

    labels: Tensor
    """[N] int64; of a slot that is not valid, anything."""
    sample_ids: Tensor
    """[N] int64."""
    valid: Tensor
    """[N] bool."""
    num_valid: Tensor
    """Scalar int64."""


def gather_slots(labels: Tensor, sample_ids: Tensor, valid: Tensor, num_classes: int) -> Slots:
    """Join the ranks' slots, each argument [B] with B equal on all ranks, in order of ranks. Collective.

    Raises:
        UserError: a valid slot's label is not in [0, num_classes); on all ranks.
    """
    gathered = dist.all_gather_rows(torch.stack([labels, sample_ids, valid.long()], dim=1))
    slots = Slots(gathered[:, 0], gathered[:, 1], gathered[:, 2].bool(), gathered[:, 2].sum())
    check_labels(slots.labels, slots.sample_ids, slots.valid, num_classes)
    return slots


def without_masked(embeddings: Tensor, valid: Tensor, dtype: torch.dtype) -> Tensor:
    """A rank's embeddings [B, D] in `dtype`, zero where `valid` [B] is False; differentiable.

    Before any product, forward and backward: NaN times zero would be NaN.
    """
    return embeddings.to(dtype).masked_fill(~valid[:, None], 0)
