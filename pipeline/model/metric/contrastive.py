"""Contrastive loss over all pairs (DeepID2, Sun et al. 2014, arXiv:1406.4773)."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.config.metric_heads import ContrastiveConfig
from pipeline.model.head import register_head
from pipeline.model.metric.anchors import AnchorBlock
from pipeline.model.metric.base import MetricHead, Walk
from pipeline.model.metric.distances import distance, distance_slope
from pipeline.model.metric.sums import Tally


class ContrastiveHead(MetricHead):
    """Mean of ½d² over the positive pairs plus mean of ½(m − d)² over the negative pairs with d < m.

    The paper adds up a few sampled pairs; over all pairs of a batch, most negatives lie beyond the margin, and a mean
    that counted them would fade as the batch grows.
    """

    terms = ("positive", "negative")

    def __init__(self, config: ContrastiveConfig, num_classes: int, embedding_dim: int) -> None:
        super().__init__(num_classes, embedding_dim, config.block_bytes, config.memory)
        self.margin = config.margin

    def add_block(self, block: AnchorBlock, walk: Walk) -> None:
        positive, negative = walk.terms["positive"], walk.terms["negative"]
        # ½d² = 1 − cosine
        positive.add(torch.where(block.is_positive, 1 - block.positive_cosine, 0).sum(), block.is_positive.sum())
        positive.add_pair_slopes(block, block.positive_columns, -block.is_positive.to(block.positive_cosine.dtype))
        d = distance(block.negative_cosine)
        lack = (self.margin - d).clamp_(min=0)
        negative.add(lack.square().sum() / 2, (lack > 0).sum())
        negative.add_slopes(block, -lack * distance_slope(d))

    def figures(self, tally: Tally) -> dict[str, Tensor]:
        return {
            "positive_loss": tally.mean("positive_sum", "positive_count"),
            "negative_loss": tally.mean("negative_sum", "negative_count"),
            "num_negative_pairs": tally["negative_count"],
        }


@register_head("contrastive")
def build_contrastive(config: ContrastiveConfig, num_classes: int, embedding_dim: int, seed: int) -> ContrastiveHead:
    """Build the head from its configuration section."""
    return ContrastiveHead(config, num_classes, embedding_dim)
