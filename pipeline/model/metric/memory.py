"""Cross-batch memory (Wang et al. 2020, arXiv:1912.06798): a queue of past embeddings that join the gallery."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.config.metric_heads import MemoryConfig
from pipeline.model.metric.anchors import PastSamples
from pipeline.model.metric.batch import GlobalBatch


class EmbeddingMemory(nn.Module):
    """The newest samples of past batches. Every rank holds all of them and moves them alike; they go into checkpoints.

    Args:
        config: size and start.
        embedding_dim: D.
    """

    embeddings: Tensor
    """[size, D], of unit length."""
    labels: Tensor
    sample_ids: Tensor
    num_written: Tensor
    """Scalar int64, samples written so far; the next goes to this place modulo size."""

    def __init__(self, config: MemoryConfig, embedding_dim: int) -> None:
        super().__init__()
        self.start_step = config.start_step
        self.register_buffer("embeddings", torch.zeros(config.size, embedding_dim))
        self.register_buffer("labels", torch.zeros(config.size, dtype=torch.int64))
        self.register_buffer("sample_ids", torch.zeros(config.size, dtype=torch.int64))
        self.register_buffer("num_written", torch.zeros((), dtype=torch.int64))

    def recall(self) -> PastSamples | None:
        """All samples it holds, sorted by label; None if it holds none."""
        num_held = min(int(self.num_written), len(self.labels))
        if num_held == 0:
            return None
        order = self.labels[:num_held].argsort(stable=True)
        return PastSamples(self.embeddings[order], self.labels[order], self.sample_ids[order])

    def remember(self, batch: GlobalBatch, step: int) -> None:
        """Take in a batch, in place of the oldest samples; nothing before `start_step`."""
        if step < self.start_step:
            return
        size, num_batch = len(self.labels), len(batch.labels)
        # of a batch larger than the memory, the end: no place is written twice
        kept = slice(max(0, num_batch - size), num_batch)
        places = (self.num_written + torch.arange(num_batch, device=self.labels.device))[kept] % size
        self.embeddings[places] = batch.unit[kept]
        self.labels[places] = batch.labels[kept]
        self.sample_ids[places] = batch.sample_ids[kept]
        self.num_written += num_batch
