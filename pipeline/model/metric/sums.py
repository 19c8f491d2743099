"""What a walk over the anchors adds up: sums for the loss and the metrics, and the loss's gradient.

The gradient is formed beside the loss, while a block's cosines are at hand: nothing of a block is kept for the backward
pass, and its cosines are not formed twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from pipeline import dist
from pipeline.model.metric.anchors import AnchorBlock


class Tally:
    """Named float64 sums over this rank's anchors, joined over all ranks at once.

    Args:
        sizes: how many numbers stand under each name, the same on all ranks.
        device: where.
    """

    def __init__(self, sizes: Mapping[str, int], device: torch.device) -> None:
        self._sizes = list(sizes.values())
        self._flat = torch.zeros(sum(self._sizes), dtype=torch.float64, device=device)
        self._parts = dict(zip(sizes, self._flat.split(self._sizes), strict=True))

    def add(self, name: str, value: Tensor) -> None:
        """Add a scalar or as many numbers as the name has."""
        self._parts[name] += value

    def join(self) -> None:
        """Add up what all ranks have. Collective, once."""
        dist.all_reduce_sum(self._flat)

    def __getitem__(self, name: str) -> Tensor:
        """A scalar, or [size] where the size is not 1."""
        part = self._parts[name]
        return part[0] if len(part) == 1 else part

    def mean(self, total: str, count: str) -> Tensor:
        """The first name's sum over the second's; 0 where there was nothing to count."""
        return self[total] / self[count].clamp(min=1)


class Term:
    """A part of the loss that is a mean: Σ values / number of them, with the gradient of Σ values.

    Args:
        name: sums stand in the tally under `NAME_sum` and `NAME_count`.
        tally: see there.
        unit: [n, D], the batch.
        gallery: [M, D], the batch and below it the memory, which gets no gradient.
        wants_gradient: False saves the work.
    """

    def __init__(self, name: str, tally: Tally, unit: Tensor, gallery: Tensor, wants_gradient: bool) -> None:
        self._name, self._tally, self._unit, self._gallery = name, tally, unit, gallery
        self.gradient = torch.zeros_like(unit) if wants_gradient else None
        """[n, D], of this rank's part of the sum with respect to `unit`; None if not wanted."""

    @staticmethod
    def sizes(name: str) -> dict[str, int]:
        """What a tally must have room for."""
        return {f"{name}_sum": 1, f"{name}_count": 1}

    def add(self, total: Tensor, count: Tensor) -> None:
        """Count values in: scalars."""
        self._tally.add(f"{self._name}_sum", total)
        self._tally.add(f"{self._name}_count", count)

    def mean(self) -> Tensor:
        """Scalar float64; 0 of nothing."""
        return self._tally.mean(f"{self._name}_sum", f"{self._name}_count")

    def mean_gradient(self) -> Tensor:
        """[n, D], of this rank's part of the mean."""
        assert self.gradient is not None
        return self.gradient / self._tally[f"{self._name}_count"].clamp(min=1).to(self.gradient.dtype)

    def add_slopes(self, block: AnchorBlock, slopes: Tensor) -> None:
        """Carry the sum's derivatives with respect to a block's cosines [b, M] on to the embeddings."""
        if self.gradient is None:
            return
        self.gradient[block.rows].addmm_(slopes, self._gallery)
        self.gradient.addmm_(slopes[:, : len(self._unit)].t(), self._unit[block.rows])

    def add_pair_slopes(self, block: AnchorBlock, columns: Tensor, slopes: Tensor) -> None:
        """As `add_slopes`, for the few cosines [b, T] in the named columns [b, T]; all others have slope 0."""
        if self.gradient is None or columns.shape[1] == 0:
            return
        # sums of weighted rows: what a product with a sparse matrix would give, on any device and in both types
        self.gradient[block.rows] += functional.embedding_bag(
            columns, self._gallery, mode="sum", per_sample_weights=slopes
        )
        rows = torch.arange(block.rows.start, block.rows.stop, device=columns.device)[:, None].expand_as(columns)
        chosen = (slopes != 0) & (columns < len(self._unit))
        columns, slopes, rows = columns[chosen], slopes[chosen], rows[chosen]
        order = columns.argsort()
        reached, sizes = torch.unique_consecutive(columns[order], return_counts=True)
        if len(reached):
            self.gradient[reached] += functional.embedding_bag(
                rows[order],
                self._unit,
                offsets=sizes.cumsum(0) - sizes,
                mode="sum",
                per_sample_weights=slopes[order],
            )


def with_gradient(value: Tensor, gradients: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Give a scalar a graph: its gradient with respect to the first of each pair is the second, of the same shape."""
    inputs, known = zip(*gradients, strict=True)
    return cast(Tensor, _KnownGradient.apply(value, len(inputs), *inputs, *known))


class _KnownGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, num_inputs: int, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors[num_inputs:])
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        known = ctx.saved_tensors
        return None, None, *(gradients[0] * gradient for gradient in known), *(None for _ in known)
