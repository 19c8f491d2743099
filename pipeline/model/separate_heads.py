"""One backbone, several label spaces: a head for each, which photos of the other spaces do not enter.

Two data sets may hold the same people under other names. A softmax over the classes of both, or pairs across them,
would push such a person away from themselves; a loss that compares within a set only cannot (Wang et al. 2020,
"Dataset-aware and Invariant Learning for Face Recognition", section 3.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from pipeline import dist
from pipeline.config.heads import HeadConfig
from pipeline.model.head import Head, HeadOutput, build_head
from pipeline.model.head_group import HeadGroup

_GOLDEN = 0x9E3779B97F4A7C15


class SeparateHeads(HeadGroup):
    """Mean over all valid slots of the loss that each one's own head gives it.

    Labels are counted through all spaces; a head hears labels from 0 on and sees slots of other spaces as masked.
    Metrics are means over the valid slots of all spaces.

    Args:
        heads: of each label space.
        sizes: numbers of labels of each.
    """

    PREFIX = "space_"

    def __init__(self, heads: Sequence[Head], sizes: Sequence[int]) -> None:
        super().__init__({str(number): head for number, head in enumerate(heads)})
        self._first_labels = [0, *accumulate(sizes)]

    def begin_step(self, labels: Tensor, valid: Tensor, step: int, epoch: float) -> None:
        for number, name in enumerate(self._names):
            self.part(name).begin_step(*self._own(number, labels, valid), step, epoch)
        self._ask_for_needs(self._names)

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
        own = [self._own(number, labels, valid) for number in range(len(self._names))]
        counts = dist.all_reduce_sum(torch.stack([mask.sum() for _, mask in own])).to(embeddings.device)
        of_call = counts.double() / counts.sum().clamp(min=1)
        of_step = of_call if num_valid is None else counts.double() / num_valid.clamp(min=1)
        losses: list[Tensor] = []
        metrics: dict[str, Tensor] = {}
        for number, (name, (own_labels, mask)) in enumerate(zip(self._names, own, strict=True)):
            output = self.part(name)(
                embeddings, own_labels, sample_ids, mask, step, teacher_embeddings=teacher_embeddings
            )
            losses.append(output.loss * of_step[number].to(output.loss.dtype))
            for metric, value in output.metrics.items():
                metrics[metric] = metrics.get(metric, torch.zeros_like(value)) + value * of_call[number].to(value.dtype)
        return HeadOutput(torch.stack(losses).sum(), metrics)

    def _own(self, number: int, labels: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Labels within a space, -1 for slots of others, and the mask of its slots.

        A label that is in no space counts to the first or the last one, whose head refuses it.
        """
        mask = valid
        if number > 0:
            mask = mask & (labels >= self._first_labels[number])
        if number < len(self._names) - 1:
            mask = mask & (labels < self._first_labels[number + 1])
        return torch.where(mask, labels - self._first_labels[number], -1), mask


def build_head_over(config: HeadConfig, label_spaces: Sequence[int], embedding_dim: int, seed: int) -> Head:
    """Build the head of a configuration over one label space, or one of its kind over each. Collective on all ranks.

    Args:
        config: of the head.
        label_spaces: numbers of labels.
        embedding_dim: D.
        seed: of initial values and of what a head draws, whatever the number of ranks.
    """
    if len(label_spaces) == 1:
        return build_head(config, label_spaces[0], embedding_dim, seed)
    heads = [
        build_head(config, size, embedding_dim, seed_of_space(seed, number)) for number, size in enumerate(label_spaces)
    ]
    return SeparateHeads(heads, label_spaces)


def seed_of_space(seed: int, number: int) -> int:
    """Another seed for each label space: with the same, their n-th centres would begin alike and be drawn together."""
    return (seed ^ (number * _GOLDEN)) & (2**63 - 1)
