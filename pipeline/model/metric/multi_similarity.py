"""Multi-similarity loss with its pair mining (Wang et al. 2019, arXiv:1904.06627)."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.config.metric_heads import MultiSimilarityConfig
from pipeline.model.head import register_head
from pipeline.model.metric.anchors import AnchorBlock
from pipeline.model.metric.base import MetricHead, Walk
from pipeline.model.metric.sums import Tally


class MultiSimilarityHead(MetricHead):
    """Mean over all anchors of ln(1 + Σ_p exp(−α(c_ap − λ)))/α + ln(1 + Σ_n exp(β(c_an − λ)))/β.

    Of the pairs those count that are harder than the hardest pair of the other kind, give or take ε; an anchor without
    a positive or without a negative has none.
    """

    terms = ("anchor",)
    counts = ("kept_positives", "kept_negatives")

    def __init__(self, config: MultiSimilarityConfig, num_classes: int, embedding_dim: int) -> None:
        super().__init__(num_classes, embedding_dim, config.block_bytes)
        self.positive_scale, self.negative_scale = config.positive_scale, config.negative_scale
        self.base, self.mining_margin = config.base, config.mining_margin

    def add_block(self, block: AnchorBlock, walk: Walk) -> None:
        positive, negative = block.positive_cosine, block.negative_cosine
        hardest_negative = negative.amax(dim=1, keepdim=True)
        hardest_positive = torch.where(block.is_positive, positive, torch.inf).amin(dim=1, keepdim=True)
        # without negatives the first bound is −inf, without positives the second +inf: nothing is kept
        is_kept_positive = block.is_positive & (positive - self.mining_margin < hardest_negative)
        is_kept_negative = negative + self.mining_margin > hardest_positive
        pull, positive_slope = self._part(positive, is_kept_positive, -self.positive_scale)
        push, negative_slope = self._part(negative, is_kept_negative, self.negative_scale)
        term, tally = walk.terms["anchor"], walk.tally
        term.add((pull + push).sum(), torch.tensor(len(positive)))
        term.add_pair_slopes(block, block.positive_columns, positive_slope)
        term.add_slopes(block, negative_slope)
        tally.add("kept_positives", is_kept_positive.sum())
        tally.add("kept_negatives", is_kept_negative.sum())

    def figures(self, tally: Tally) -> dict[str, Tensor]:
        return {
            "num_kept_positive_pairs": tally["kept_positives"],
            "num_kept_negative_pairs": tally["kept_negatives"],
        }

    def _part(self, cosine: Tensor, is_kept: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """ln(1 + Σ exp(scale·(cosine − λ)))/|scale| over the kept pairs [b], and its derivatives [b, T]."""
        exponent = torch.where(is_kept, scale * (cosine - self.base), -torch.inf)
        one = exponent.new_zeros(len(exponent))
        total = torch.logaddexp(exponent.logsumexp(dim=1), one)
        share = (exponent - total[:, None]).exp_()
        return total / abs(scale), share if scale > 0 else -share


@register_head("multi_similarity")
def build_multi_similarity(
    config: MultiSimilarityConfig, num_classes: int, embedding_dim: int, seed: int
) -> MultiSimilarityHead:
    """Build the head from its configuration section."""
    return MultiSimilarityHead(config, num_classes, embedding_dim)
