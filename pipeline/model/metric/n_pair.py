"""N-pair multi-class loss (Sohn 2016, "Improved Deep Metric Learning with Multi-class N-pair Loss Objective")."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.config.metric_heads import NPairConfig
from pipeline.model.head import register_head
from pipeline.model.metric.anchors import AnchorBlock
from pipeline.model.metric.base import MetricHead, Walk
from pipeline.model.metric.sums import Tally


class NPairHead(MetricHead):
    """Mean over the anchor-positive pairs of ln(1 + Σ_n exp(s·c_an − s·c_ap)), over all the anchor's negatives.

    The paper compares inner products of embeddings whose length it penalises; here they have unit length and a scale.
    """

    terms = ("pair",)

    def __init__(self, config: NPairConfig, num_classes: int, embedding_dim: int) -> None:
        super().__init__(num_classes, embedding_dim, config.block_bytes)
        self.scale = config.scale

    def add_block(self, block: AnchorBlock, walk: Walk) -> None:
        logits = self.scale * block.negative_cosine
        negative_lse = logits.logsumexp(dim=1, keepdim=True)
        # an anchor without negatives has no loss
        exists = block.is_positive & (negative_lse > -torch.inf)
        lack = negative_lse - self.scale * block.positive_cosine
        value = torch.where(exists, functional.softplus(lack, threshold=40), 0)
        slope = torch.where(exists, self.scale * lack.sigmoid(), 0)
        term = walk.terms["pair"]
        term.add(value.sum(), exists.sum())
        term.add_pair_slopes(block, block.positive_columns, -slope)
        share = logits.sub_(negative_lse.where(negative_lse > -torch.inf, 0)).exp_()
        term.add_slopes(block, share.mul_(slope.sum(dim=1, keepdim=True)))

    def figures(self, tally: Tally) -> dict[str, Tensor]:
        return {"num_pairs": tally["pair_count"]}


@register_head("n_pair")
def build_n_pair(config: NPairConfig, num_classes: int, embedding_dim: int, seed: int) -> NPairHead:
    """Build the head from its configuration section."""
    return NPairHead(config, num_classes, embedding_dim)
