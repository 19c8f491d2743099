"""Harmonic embeddings: a new model whose embeddings can be compared with those of a frozen older one.

Schroff et al. 2015, arXiv:1503.03832, the appendix on harmonic embedding: triplets mix the embeddings of both, and
semi-hard negatives are selected from all of them. So an index made by the old model goes on answering the new one.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from pipeline import dist
from pipeline.config.errors import UserError
from pipeline.config.teacher_heads import HarmonicConfig
from pipeline.model.block_size import block_rows
from pipeline.model.global_batch import gather_slots, without_masked
from pipeline.model.head import Head, HeadOutput, register_head
from pipeline.model.mixed_triplets import mixed_triplets
from pipeline.model.teacher import Teacher


class HarmonicHead(Head):
    """Mean of [d²_ap − d²_an + α]₊ over the semi-hard triplets of the global batch, as both models embed it.

    Each photo is in the pool twice, so a photo's old embedding is a positive of its new one, whatever the batch. See
    `pipeline.model.mixed_triplets` for which triplets are formed. Embeddings are brought to unit length. The loss is
    zero, with a graph, where no triplet is found.

    Computes in float32 whatever the embeddings' type and whatever autocast says; float64 embeddings in float64.

    Args:
        num_classes: C.
        embedding_dim: D, which is the teacher's too.
        margin: α.
        block_bytes: memory of one block of distances; None chooses by device.
    """

    needs_whole_batch = True
    needs_teacher = True

    def __init__(self, num_classes: int, embedding_dim: int, margin: float, block_bytes: int | None) -> None:
        super().__init__()
        self.num_classes, self.embedding_dim = num_classes, embedding_dim
        self.margin, self.block_bytes = margin, block_bytes

    def attach_teacher(self, teacher: Teacher) -> None:
        if teacher.embedding_dim != self.embedding_dim:
            raise UserError(
                "backbone.embedding_dim",
                f"{self.embedding_dim}, while the teacher of a harmonic head has {teacher.embedding_dim}",
                "the same: embeddings of both are compared",
            )

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        sample_ids: Tensor,
        valid: Tensor,
        step: int,
        *,
        num_valid: Tensor | None = None,
        teacher_embeddings: Tensor | None = None,
    ) -> HeadOutput:
        assert teacher_embeddings is not None
        dtype = torch.float64 if embeddings.dtype == torch.float64 else torch.float32
        with torch.autocast(embeddings.device.type, enabled=False):
            slots = gather_slots(labels, sample_ids, valid, self.num_classes)
            new = dist.all_gather_rows(functional.normalize(without_masked(embeddings, valid, dtype)))
            old = dist.all_gather_rows(functional.normalize(without_masked(teacher_embeddings.detach(), valid, dtype)))
            rows = block_rows(2 * len(new), new, self.block_bytes)
            triplets = mixed_triplets(new, old, slots.labels, slots.valid, self.margin, rows)
            counts = dist.all_reduce_sum(torch.stack([triplets.num_triplets, triplets.num_pairs]))
            loss = dist.sum_over_ranks(triplets.total) / counts[0].clamp(min=1)
            cosine = (new.detach() * old).sum(1)  # zero in masked slots
            metrics = {
                "num_triplets": counts[0].to(dtype),
                "num_dropped_pairs": (counts[1] - counts[0]).to(dtype),
                "semi_hard_share": counts[0] / counts[1].clamp(min=1),
                "teacher_cosine": cosine.sum() / slots.num_valid.clamp(min=1),
            }
            return HeadOutput(loss, metrics)


@register_head("harmonic")
def build_harmonic(config: HarmonicConfig, num_classes: int, embedding_dim: int, seed: int) -> HarmonicHead:
    """Build the head from its configuration section; it wants its teacher attached."""
    return HarmonicHead(num_classes, embedding_dim, config.margin, config.block_bytes)
