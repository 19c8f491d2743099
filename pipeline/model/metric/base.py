"""The base of all heads that compare the embeddings of the global batch with each other.

Every rank gathers the batch, takes its share of the anchors and walks them in blocks against the gallery: memory is
O(batch · D) and a block, never batch · batch. See docs/metric-learning.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pipeline import dist
from pipeline.config.metric_heads import MemoryConfig
from pipeline.model.head import Head, HeadOutput
from pipeline.model.metric import observe
from pipeline.model.metric.anchors import AnchorBlock, anchor_blocks
from pipeline.model.metric.batch import GlobalBatch, gather_batch
from pipeline.model.metric.memory import EmbeddingMemory
from pipeline.model.metric.sums import Tally, Term, with_gradient


@dataclass(frozen=True)
class Walk:
    """What a walk over the anchors reads and adds to."""

    batch: GlobalBatch
    step: int
    tally: Tally
    terms: Mapping[str, Term]
    anchor_parameter: Tensor | None
    """[n], a learnable number for each anchor, or None."""
    anchor_gradient: Tensor | None
    """[n], where its gradient is added up: of the only term's sum."""


class MetricHead(Head):
    """Base of the metric heads: gathering, blocks of anchors, sums over ranks, the graph, the metrics.

    Computes in float32 whatever the embeddings' type and whatever autocast says; after `.double()`, in float64.
    The loss is the sum of the means of its `terms`.

    Args:
        num_classes: labels go from 0 to one below.
        block_bytes: memory of a block of cosines; None chooses by device.
        memory: of past batches, or None.
        embedding_dim: D.
    """

    needs_whole_batch = True
    terms: ClassVar[tuple[str, ...]]
    """The means that the loss is the sum of."""
    counts: ClassVar[tuple[str, ...]] = ()
    """Further sums that a subclass keeps in the tally, for its figures."""
    precision: Tensor

    def __init__(
        self, num_classes: int, embedding_dim: int, block_bytes: int | None, memory: MemoryConfig | None = None
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.block_bytes = block_bytes
        self.memory = EmbeddingMemory(memory, embedding_dim) if memory is not None else None
        # knows the type that `.double()` asks for, where there is neither parameter nor memory to tell
        self.register_buffer("precision", torch.zeros(()), persistent=False)

    def add_block(self, block: AnchorBlock, walk: Walk) -> None:
        """Add a block's values, counts and slopes. Not collective: ranks have different numbers of blocks."""
        raise NotImplementedError

    def anchor_parameter(self, batch: GlobalBatch) -> Tensor | None:
        """[n], a learnable number for each anchor, with a graph; None without one. Collective."""
        return None

    def figures(self, tally: Tally) -> dict[str, Tensor]:
        """Metrics of a joined tally, beside those of all metric heads: scalars."""
        return {}

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
            batch = gather_batch(embeddings, labels, sample_ids, valid, self.num_classes, self.precision.dtype)
            anchor_parameter = self.anchor_parameter(batch)
            with torch.no_grad():
                walk = self._walk(batch, step, anchor_parameter)
            loss = self._loss(walk)
            figures = observe.batch_figures(batch, walk.tally) | self.figures(walk.tally)
            if self.memory is not None and self.training:
                self.memory.remember(batch, step)
        return HeadOutput(loss, {name: figure.detach().to(loss.dtype) for name, figure in figures.items()})

    def _walk(self, batch: GlobalBatch, step: int, anchor_parameter: Tensor | None) -> Walk:
        past = self.memory.recall() if self.memory is not None else None
        gallery = batch.unit if past is None else torch.cat([batch.unit, past.unit])
        sizes = dict(observe.SIZES) | dict.fromkeys(self.counts, 1)
        for name in self.terms:
            sizes |= Term.sizes(name)
        tally = Tally(sizes, gallery.device)
        wants_gradient = batch.gathered.requires_grad or (
            anchor_parameter is not None and anchor_parameter.requires_grad
        )
        walk = Walk(
            batch=batch,
            step=step,
            tally=tally,
            terms={name: Term(name, tally, batch.unit, gallery, wants_gradient) for name in self.terms},
            anchor_parameter=anchor_parameter,
            anchor_gradient=None if anchor_parameter is None else torch.zeros_like(anchor_parameter),
        )
        for block in anchor_blocks(batch, past, gallery, self.block_bytes):
            observe.observe_block(block, tally)
            self.add_block(block, walk)
        tally.join()
        return walk

    def _loss(self, walk: Walk) -> Tensor:
        """The loss with its graph. All ranks backpropagate the same loss, of which a rank has its anchors' part:
        times the number of ranks, parts add up in `all_gather_rows` to what the engine divides by it."""
        batch, terms = walk.batch, walk.terms.values()
        value = torch.stack([term.mean() for term in terms]).sum()
        # mining drops what does not compare: an embedding that is not finite must not pass in silence
        value = (value + 0 * batch.mean_norm).to(batch.unit.dtype)
        if any(term.gradient is None for term in terms):
            return value
        gradient = torch.stack([term.mean_gradient() for term in terms]).sum(0) * dist.world_size()
        gradients = [(batch.gathered, batch.scatter(gradient))]
        if walk.anchor_parameter is not None and walk.anchor_gradient is not None:
            (name,) = self.terms
            count = walk.tally[f"{name}_count"].clamp(min=1)
            gradients.append(
                (walk.anchor_parameter, walk.anchor_gradient * (dist.world_size() / count).to(value.dtype))
            )
        return with_gradient(value, gradients)
