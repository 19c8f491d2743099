"""Margin-based loss with distance-weighted sampling (Wu et al. 2017, arXiv:1706.07567, section 4)."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from pipeline import dist
from pipeline.config.metric_heads import MarginBasedConfig
from pipeline.model.head import ActiveRows, register_head
from pipeline.model.keyed import keyed_uniform
from pipeline.model.metric.anchors import AnchorBlock
from pipeline.model.metric.base import MetricHead, Walk
from pipeline.model.metric.batch import GlobalBatch
from pipeline.model.metric.distances import distance, distance_slope, squared_distance
from pipeline.model.metric.sums import Tally

MIN_SAMPLED_DISTANCE = 0.5
"""Nearer negatives are weighted as if they were this far: their gradients are noisy."""
MAX_SAMPLED_DISTANCE = 1.4
"""Farther negatives, whose loss is zero at the usual β, are not drawn."""


def log_weights(cosine: Tensor, embedding_dim: int) -> Tensor:
    """Logarithm of the weights that negatives are drawn with, elementwise; −inf for those that never are.

    The inverse of the density of the distances between points spread evenly over the unit sphere,
    q(d) ∝ d^(D−2) · (1 − d²/4)^((D−3)/2).

    Args:
        cosine: of any shape; −inf stands for what is no negative.
        embedding_dim: D.
    """
    squared = squared_distance(cosine)
    # (D − 2)·ln d is half of it of the square; the second factor is bounded away from ln 0 by what is drawn at all
    clamped = squared.clamp(MIN_SAMPLED_DISTANCE**2, MAX_SAMPLED_DISTANCE**2)
    log_q = (embedding_dim - 2) / 2 * clamped.log() + (embedding_dim - 3) / 2 * torch.log1p(-clamped / 4)
    return torch.where(squared <= MAX_SAMPLED_DISTANCE**2, -log_q, -torch.inf)


class MarginBasedHead(MetricHead):
    """[α + d_ap − β]₊ and [α − d_an + β]₊, d plain, each over the number of those that are not zero, as the authors'.

    Every anchor-positive pair is joined by one drawn negative; pairs whose anchor has none within 1.4 are dropped. β is
    learnt: one, replicated, or one a class, of which each rank has its rows and a step trains those of the batch only.
    """

    terms = ("pair",)
    counts = ("candidates", "pairs", "active_positives", "active_negatives", "hard", "drawn_distance", "beta")

    def __init__(self, config: MarginBasedConfig, num_classes: int, embedding_dim: int, seed: int) -> None:
        super().__init__(num_classes, embedding_dim, config.block_bytes)
        self.margin, self.seed, self.embedding_dim = config.margin, seed, embedding_dim
        self.is_per_class = config.beta_per_class
        self.first_class, last = 0, 1
        if self.is_per_class:
            self.first_class, last = dist.partition(num_classes, dist.rank(), dist.world_size())
        self.beta = nn.Parameter(torch.full((last - self.first_class,), config.beta))
        """[1], or [this rank's classes]."""
        self._active: ActiveRows | None = None

    def sharded_tensors(self) -> dict[str, tuple[Tensor, int]]:
        return {"beta": (self.beta, self.num_classes)} if self.is_per_class else {}

    def row_sparse(self) -> frozenset[str]:
        return frozenset(self.sharded_tensors())

    def active_rows(self) -> dict[str, ActiveRows]:
        return {} if self._active is None else {"beta": self._active}

    def begin_step(self, labels: Tensor, valid: Tensor, step: int, epoch: float) -> None:
        if not self.is_per_class:
            return
        everywhere = dist.all_gather_rows(torch.stack([labels, valid.long()], dim=1))
        rows = everywhere[everywhere[:, 1] > 0, 0].unique() - self.first_class
        rows = rows[(rows >= 0) & (rows < len(self.beta))]
        self._active = ActiveRows(rows, nn.Parameter(self.beta.detach()[rows]), None)

    def anchor_parameter(self, batch: GlobalBatch) -> Tensor:
        if not self.is_per_class:
            return self.beta.expand(len(batch.labels))
        assert self._active is not None, "begin_step comes first"
        rows, values = self._active.rows, self._active.leaf
        own = batch.labels - self.first_class
        if len(rows) == 0:
            return cast(Tensor, _JoinParts.apply(values.sum() * torch.zeros_like(own, dtype=values.dtype)))
        place = torch.searchsorted(rows, own).clamp(max=len(rows) - 1)
        return cast(Tensor, _JoinParts.apply(torch.where(rows[place] == own, values[place], 0)))

    def add_block(self, block: AnchorBlock, walk: Walk) -> None:
        assert walk.anchor_parameter is not None
        assert walk.anchor_gradient is not None
        beta = walk.anchor_parameter[block.rows, None]
        columns, exists = self._draw(block, walk)
        negative = block.negative_cosine.gather(1, columns)
        positive_d, negative_d = distance(block.positive_cosine), distance(negative)
        too_far = torch.where(exists, positive_d - beta + self.margin, 0).clamp_(min=0)
        too_near = torch.where(exists, beta - negative_d + self.margin, 0).clamp_(min=0)
        pulled, pushed = (too_far > 0).to(beta.dtype), (too_near > 0).to(beta.dtype)
        term, tally = walk.terms["pair"], walk.tally
        term.add((too_far + too_near).sum(), (pulled + pushed).sum())
        term.add_pair_slopes(
            block,
            torch.cat([block.positive_columns, columns], dim=1),
            torch.cat(
                [
                    pulled * distance_slope(positive_d),
                    torch.where(exists, -pushed * distance_slope(negative_d), 0),
                ],
                dim=1,
            ),
        )
        walk.anchor_gradient[block.rows] = (pushed - pulled).sum(1)
        tally.add("candidates", block.is_positive.sum())
        tally.add("pairs", exists.sum())
        tally.add("active_positives", pulled.sum())
        tally.add("active_negatives", pushed.sum())
        tally.add("hard", (exists & (negative >= block.positive_cosine)).sum())
        tally.add("drawn_distance", torch.where(exists, negative_d, 0).sum())
        tally.add("beta", torch.where(exists, beta, 0).sum())

    def figures(self, tally: Tally) -> dict[str, Tensor]:
        return {
            "num_triplets": tally["pairs"],
            "num_dropped_pairs": tally["candidates"] - tally["pairs"],
            "hard_share": tally.mean("hard", "pairs"),
            "active_positive_share": tally.mean("active_positives", "pairs"),
            "active_negative_share": tally.mean("active_negatives", "pairs"),
            "drawn_distance": tally.mean("drawn_distance", "pairs"),
            "beta": tally.mean("beta", "pairs"),
        }

    def _draw(self, block: AnchorBlock, walk: Walk) -> tuple[Tensor, Tensor]:
        """A negative for each pair [b, K], keyed by (seed, step, anchor's sample id, positive's), and which exist."""
        weights = log_weights(block.negative_cosine, self.embedding_dim)
        greatest = weights.amax(dim=1, keepdim=True)
        has_any = greatest > -torch.inf
        # the shift by each anchor's own maximum, which leaves it a weight of 1: nothing to divide by zero
        weights = (weights - greatest.where(has_any, 0)).exp_()
        below = weights.cumsum(dim=1, dtype=torch.float64)
        positive_ids = walk.batch.sample_ids[block.positive_columns]
        draw = keyed_uniform(self.seed, walk.step, block.sample_ids[:, None], positive_ids)
        # on the right of equals: never a column without weight, which adds nothing to the sum below it
        columns = torch.searchsorted(below, draw * below[:, -1:], right=True)
        exists = block.is_positive & has_any
        return columns.where(exists, 0), exists


class _JoinParts(torch.autograd.Function):
    """Sum over ranks of parts of which one is not zero; each rank's part gets the whole gradient.

    The incoming gradient is, on each rank, that of its anchors times the number of ranks (see `MetricHead._loss`).
    """

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        return dist.all_reduce_sum(part.clone())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return dist.all_reduce_sum(gradients[0].clone()) / dist.world_size()


@register_head("margin_based")
def build_margin_based(config: MarginBasedConfig, num_classes: int, embedding_dim: int, seed: int) -> MarginBasedHead:
    """Build the head from its configuration section. Collective: with `beta_per_class` ranks share the classes."""
    return MarginBasedHead(config, num_classes, embedding_dim, seed)
