"""The margin softmax head: class centres split over ranks by rows, logits formed block by block.

The layout is that of Partial FC (An et al. 2020, arXiv:2010.05222), with all negatives: embeddings travel, class
centres stay. See docs/head.md for the mathematics, the memory and what is communicated.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from pipeline import dist
from pipeline.config.errors import UserError
from pipeline.config.heads import MarginSoftmaxConfig
from pipeline.model.class_blocks import MIN_NORM, WalkOptions, target_product, walk_classes
from pipeline.model.head import Head, HeadOutput, register_head
from pipeline.model.margins.base import Margin, build_margin

INITIAL_STD = 0.01
BLOCK_BYTES_CPU = 2**20
"""Of a block on a CPU: it stays in a core's cache between two passes; measured, 16 MiB takes a quarter longer."""
BLOCK_BYTES_GPU = 128 * 2**20
"""Of a block on a GPU: large enough for full matrix products."""

_CENTRES_KEY = 0x43454E54524553
_INITIAL_ROWS_AT_ONCE = 8192


def initial_centres(seed: int, start: int, stop: int, embedding_dim: int) -> Tensor:
    """Initial class centres `start` to `stop`: [stop − start, D] float32, normal with standard deviation 0.01.

    Row j, column k is a function of (seed, j, k) alone: it has its own place in a counter-based generator's stream
    (Philox, Salmon et al. 2011), so any rank makes just its rows.
    """
    centres = torch.empty(stop - start, embedding_dim)
    counters_per_row = -(-embedding_dim // 4)
    key = np.array([seed, _CENTRES_KEY], dtype=np.uint64)
    for first in range(start, stop, _INITIAL_ROWS_AT_ONCE):
        last = min(first + _INITIAL_ROWS_AT_ONCE, stop)
        # a step of Philox's counter gives four 64-bit words
        generator = np.random.Philox(key=key, counter=first * counters_per_row)
        words = generator.random_raw(4 * counters_per_row * (last - first))
        uniform = ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
        radius, angle = uniform.reshape(last - first, 2, -1).transpose(1, 0, 2)
        radius = np.sqrt(-2 * np.log(radius))
        angle = 2 * np.pi * angle
        normal = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)[:, :embedding_dim]
        centres[first - start : last - start] = torch.from_numpy(INITIAL_STD * normal)
    return centres


class MarginSoftmaxHead(Head):
    """Softmax with a margin over class centres of which each rank holds a partition.

    Computes in float32 whatever the embeddings' type and whatever autocast says; after `.double()`, in float64.

    Args:
        num_classes: C, over all ranks.
        embedding_dim: D.
        margin: see `pipeline.model.margins`.
        seed: of the initial class centres.
        block_bytes: memory of one block of logits; None chooses by device.
    """

    def __init__(
        self, num_classes: int, embedding_dim: int, margin: Margin, seed: int, block_bytes: int | None = None
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.margin = margin
        self.block_bytes = block_bytes
        self.first_class, end = dist.partition(num_classes, dist.rank(), dist.world_size())
        self.class_centres = nn.Parameter(initial_centres(seed, self.first_class, end, embedding_dim))
        self.bias: nn.Parameter | None = None
        if not margin.is_cosine:
            self.bias = nn.Parameter(torch.zeros(end - self.first_class))

    def sharded_tensors(self) -> dict[str, tuple[Tensor, int]]:
        sharded: dict[str, tuple[Tensor, int]] = {"class_centres": (self.class_centres, self.num_classes)}
        if self.bias is not None:
            sharded["bias"] = (self.bias, self.num_classes)
        return sharded

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
        with torch.autocast(embeddings.device.type, enabled=False):
            gathered = dist.all_gather_rows(torch.stack([labels, sample_ids, valid.long()], dim=1))
            labels, sample_ids, valid = gathered[:, 0], gathered[:, 1], gathered[:, 2].bool()
            self._check_labels(labels, sample_ids, valid)
            own_valid = valid.view(dist.world_size(), -1)[dist.rank()]
            # zeroed before any product, forward and backward: NaN times zero would be NaN
            embeddings = embeddings.to(self.class_centres.dtype).masked_fill(~own_valid[:, None], 0)
            embeddings = dist.all_gather_rows(embeddings)
            return self._global_loss(embeddings, labels, sample_ids, valid, step, num_valid)

    def _global_loss(
        self,
        embeddings: Tensor,
        labels: Tensor,
        sample_ids: Tensor,
        valid: Tensor,
        step: int,
        num_valid: Tensor | None,
    ) -> HeadOutput:
        """From the batch of all ranks [N, ...] to the loss: the same work, with the same result, on every rank."""
        margin = self.margin
        norm = torch.linalg.vector_norm(embeddings, dim=1)
        scale = margin.logit_scale(norm)
        queries = embeddings
        if margin.is_cosine:
            queries = embeddings * (scale / norm.clamp(min=MIN_NORM))[:, None]
        columns = labels - self.first_class
        columns = torch.where(columns < len(self.class_centres), columns, -1)
        target = target_product(queries, self.class_centres, self.bias, columns, margin.is_cosine)
        similarity = target / scale
        transform = margin.negative_transform(similarity, norm.detach(), valid, step)
        options = WalkOptions(margin.is_cosine, self._block_rows(queries), transform)
        target, negative_lse, negative_max = walk_classes(
            queries, self.class_centres, self.bias, columns, target, options
        )
        target_logit = margin.target_logit(target / scale, norm, sample_ids, step)
        losses = margin.sample_loss(target_logit, negative_lse, norm)
        num_valid_here = valid.sum()
        loss = torch.where(valid, losses, 0).sum() / (num_valid_here if num_valid is None else num_valid).clamp(min=1)
        figures = {
            "accuracy": (target > negative_max).to(target.dtype),
            "target_cosine" if margin.is_cosine else "target_logit": similarity,
            # a single class has no negatives: −inf would spoil the sums that reports are made of
            "negative_lse": negative_lse.masked_fill(negative_lse == -torch.inf, 0),
            "embedding_norm": norm,
            **margin.metrics(similarity),
        }
        metrics = {
            name: torch.where(valid, figure.detach(), 0).sum() / num_valid_here.clamp(min=1)
            for name, figure in figures.items()
        }
        return HeadOutput(loss, metrics)

    def _block_rows(self, queries: Tensor) -> int:
        """Rows whose logits, and whose unit-length copy, fit the budget."""
        budget = self.block_bytes
        if budget is None:
            budget = BLOCK_BYTES_CPU if queries.device.type == "cpu" else BLOCK_BYTES_GPU
        return max(1, budget // (max(queries.shape) * queries.element_size()))

    def _check_labels(self, labels: Tensor, sample_ids: Tensor, valid: Tensor) -> None:
        wrong = valid & ((labels < 0) | (labels >= self.num_classes))
        if not wrong.any():
            return
        found = ", ".join(
            f"sample {sample} has label {label}"
            for sample, label in zip(sample_ids[wrong][:5].tolist(), labels[wrong][:5].tolist(), strict=True)
        )
        more = int(wrong.sum()) - 5
        raise UserError(
            "labels",
            found + (f" and {more} more" if more > 0 else ""),
            f"0 to {self.num_classes - 1}",
            "the head was built for another set of identities; preprocess verify checks the data set",
        )


@register_head("margin_softmax")
def build_margin_softmax(
    config: MarginSoftmaxConfig, num_classes: int, embedding_dim: int, seed: int
) -> MarginSoftmaxHead:
    """Build the head from its configuration section."""
    return MarginSoftmaxHead(num_classes, embedding_dim, build_margin(config.margin), seed, config.block_bytes)
