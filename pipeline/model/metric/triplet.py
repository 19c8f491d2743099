"""Triplet loss over the global batch (FaceNet, Schroff et al. 2015, arXiv:1503.03832, sections 3.1 and 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.config.metric_heads import TripletConfig
from pipeline.model.head import register_head
from pipeline.model.metric import mining
from pipeline.model.metric.anchors import AnchorBlock
from pipeline.model.metric.base import MetricHead, Walk
from pipeline.model.metric.distances import distance, distance_slope, squared_distance
from pipeline.model.metric.sums import Tally


class TripletHead(MetricHead):
    """Mean over the mined triplets of [d_ap − d_an + α]₊, or of softplus(d_ap − d_an).

    With batch_all the mean is over the triplets whose loss is not zero (Hermans et al. 2017, section 2).
    """

    terms = ("triplet",)
    counts = ("candidates", "triplets", "hard", "semi_hard", "active")

    def __init__(self, config: TripletConfig, num_classes: int, embedding_dim: int, seed: int) -> None:
        super().__init__(num_classes, embedding_dim, config.block_bytes, config.memory)
        self.mining, self.margin = config.mining, config.margin
        self.soft_margin, self.squared = config.soft_margin, config.squared
        self.seed = seed

    def add_block(self, block: AnchorBlock, walk: Walk) -> None:
        if self.mining == "batch_all":
            self._add_all(block, walk)
            return
        positive, positive_columns, is_pair = block.positive_cosine, block.positive_columns, block.is_positive
        if self.mining == "semi_hard":
            columns, exists = mining.semi_hard(block, self._edge(positive))
        elif self.mining == "hard":
            columns, exists = mining.hardest(block)
        elif self.mining == "random":
            columns, exists = mining.random(block, walk.batch, self.seed, walk.step)
        else:
            place, columns, exists = mining.batch_hard(block)
            positive, positive_columns = positive.gather(1, place), positive_columns.gather(1, place)
            is_pair = is_pair.gather(1, place)
        negative = block.negative_cosine.gather(1, columns)
        positive_d, positive_slope = self._distance(positive)
        negative_d, negative_slope = self._distance(negative)
        value, slope = self._loss_of(positive_d - negative_d)
        value, slope = torch.where(exists, value, 0), torch.where(exists, slope, 0)
        walk.terms["triplet"].add(value.sum(), exists.sum())
        walk.terms["triplet"].add_pair_slopes(
            block,
            torch.cat([positive_columns, columns], dim=1),
            torch.cat([slope * positive_slope, torch.where(exists, -slope * negative_slope, 0)], dim=1),
        )
        # semi-hard mining looks past the hard negatives: a pair is hard if there is one
        nearest = block.negative_cosine.amax(dim=1, keepdim=True) if self.mining == "semi_hard" else negative
        tally = walk.tally
        tally.add("candidates", is_pair.sum())
        tally.add("triplets", exists.sum())
        tally.add("hard", (is_pair & (nearest >= positive)).sum())
        tally.add("semi_hard", (exists & (negative < positive) & (negative > self._edge(positive))).sum())
        tally.add("active", (value > 0).sum())

    def figures(self, tally: Tally) -> dict[str, Tensor]:
        return {
            "num_triplets": tally["triplets"],
            "num_dropped_pairs": tally["candidates"] - tally["triplets"],
            "hard_share": tally.mean("hard", "candidates"),
            "semi_hard_share": tally.mean("semi_hard", "candidates"),
            "active_share": tally.mean("active", "triplets"),
        }

    def _add_all(self, block: AnchorBlock, walk: Walk) -> None:
        """All triplets of a block, one of the anchors' positives at a time."""
        term, tally = walk.terms["triplet"], walk.tally
        negative_d, negative_slope = self._distance(block.negative_cosine)
        is_negative = block.negative_cosine > -torch.inf
        pull = torch.zeros_like(negative_d)
        push = torch.zeros_like(block.positive_cosine)
        for number in range(block.positive_columns.shape[1]):
            is_triplet = is_negative & block.is_positive[:, number, None]
            positive = block.positive_cosine[:, number, None]
            value, slope = self._loss_of(self._distance(positive)[0] - negative_d)
            value, slope = torch.where(is_triplet, value, 0), torch.where(is_triplet, slope, 0)
            pull += slope
            push[:, number] = slope.sum(1)
            num_active = (value > 0).sum()
            term.add(value.sum(), num_active)
            is_hard = is_triplet & (block.negative_cosine >= positive)
            is_within = is_triplet & (block.negative_cosine > self._edge(positive))
            tally.add("candidates", is_triplet.sum())
            tally.add("triplets", is_triplet.sum())
            tally.add("hard", is_hard.sum())
            tally.add("semi_hard", (is_within & ~is_hard).sum())
            tally.add("active", num_active)
        term.add_slopes(block, -pull * negative_slope)
        term.add_pair_slopes(block, block.positive_columns, push * self._distance(block.positive_cosine)[1])

    def _distance(self, cosine: Tensor) -> tuple[Tensor, Tensor]:
        """Distance and its derivative with respect to the cosine, elementwise."""
        if self.squared:
            return squared_distance(cosine), torch.full_like(cosine, -2)
        d = distance(cosine)
        return d, distance_slope(d)

    def _loss_of(self, difference: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of d_ap − d_an, and its derivative."""
        if self.soft_margin:
            return functional.softplus(difference, threshold=40), difference.sigmoid()
        lack = difference + self.margin
        return lack.clamp(min=0), (lack > 0).to(lack.dtype)

    def _edge(self, positive: Tensor) -> Tensor:
        """Cosine of what is just α farther away than the positives."""
        if self.squared:
            return positive - self.margin / 2
        return 1 - (distance(positive) + self.margin).square() / 2


@register_head("triplet")
def build_triplet(config: TripletConfig, num_classes: int, embedding_dim: int, seed: int) -> TripletHead:
    """Build the head from its configuration section."""
    return TripletHead(config, num_classes, embedding_dim, seed)
