"""A weighted sum of heads, whose weights may follow a schedule over epochs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline import dist
from pipeline.config.heads import SumConfig, weight_at
from pipeline.model.head import Head, HeadOutput, build_head, register_head
from pipeline.model.head_group import HeadGroup


class SumHead(HeadGroup):
    """Σ weight · loss over its parts. A part of weight 0 rests: it is not called, its parameters get no gradient, and
    so the optimizer leaves them and their momentum alone; its buffers stay as they are.

    Before the first `begin_step` all parts are as at epoch 0, and it needs what any of them needs; after it, what the
    parts that do not rest need. Its metrics are those of these parts as `NAME/metric`, with `NAME/loss`, the part's
    mean loss before its weight, and for all parts `NAME/weight`.

    Args:
        parts: heads and their weights, as in the configuration, by name; names and order equal on all ranks.
    """

    PREFIX = "part_"

    def __init__(self, parts: Mapping[str, tuple[Head, float | list[tuple[float, float]]]]) -> None:
        super().__init__({name: head for name, (head, _) in parts.items()})
        self._schedules = {name: weight for name, (_, weight) in parts.items()}
        self._weights = {name: weight_at(schedule, 0) for name, schedule in self._schedules.items()}

    def begin_step(self, labels: Tensor, valid: Tensor, step: int, epoch: float) -> None:
        self._weights = {name: weight_at(schedule, epoch) for name, schedule in self._schedules.items()}
        self._ask_for_needs(self._working())
        for name in self._working():
            self.part(name).begin_step(labels, valid, step, epoch)

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
        losses: list[Tensor] = []
        metrics: dict[str, Tensor] = {}
        # of several calls each gives its share of the loss; metrics are means over the slots of one call
        share = 1.0 if num_valid is None else num_valid / dist.all_reduce_sum(valid.sum()).clamp(min=1)
        for name in self._working():
            output = self.part(name)(
                embeddings,
                labels,
                sample_ids,
                valid,
                step,
                num_valid=num_valid,
                teacher_embeddings=teacher_embeddings,
            )
            losses.append(self._weights[name] * output.loss)
            metrics[f"{name}/loss"] = output.loss.detach() * share
            metrics |= {f"{name}/{metric}": value for metric, value in output.metrics.items()}
        for name, weight in self._weights.items():
            metrics[f"{name}/weight"] = losses[0].new_tensor(weight)
        return HeadOutput(torch.stack(losses).sum(), metrics)

    def _working(self) -> list[str]:
        return [name for name, weight in self._weights.items() if weight > 0]


@register_head("sum")
def build_sum(config: SumConfig, num_classes: int, embedding_dim: int, seed: int) -> SumHead:
    """Build the parts, in the order in which they stand in the configuration."""
    return SumHead(
        {
            name: (build_head(part.head, num_classes, embedding_dim, seed), part.weight)
            for name, part in config.parts.items()
        }
    )
