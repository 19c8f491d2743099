"""The walk over a rank's class centres: log-sum-exp of all logits but the target's, without ever holding all logits.

For queries q_i (embeddings times scale) and a rank's class centres, unit length where asked for, the logits are
z_ij = q_i·w_j + b_j. A block of rows at a time gives its logits [N, n] to an online log-sum-exp and is dropped; the
backward pass forms each block again. Memory is O(N·D + rows·D) plus one block; the price is a fourth matrix product
beside the three of a dense layer, which is saved where a single block holds all rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from pipeline import dist
from pipeline.model.margins.base import NegativeTransform

MIN_NORM = 1e-12
"""Floor of a class centre's length where it divides."""


@dataclass(frozen=True)
class WalkOptions:
    """What does not change the types of a walk's tensors."""

    normalise: bool
    """Divide each class centre by its length."""
    block_rows: int
    """Class centres a block."""
    transform: NegativeTransform | None
    """Elementwise map of the logits; the target's own are not touched."""


def target_product(queries: Tensor, centres: Tensor, bias: Tensor | None, columns: Tensor, normalise: bool) -> Tensor:
    """Logit of each query's own class before any margin, wherever its centre lives. Collective; without a graph.

    Args:
        queries: [N, D].
        centres: [rows, D], this rank's.
        bias: [rows] or None.
        columns: [N] int64, the target's row on this rank, negative where another rank owns it.
        normalise: divide centres by their length.

    Returns:
        [N], the same on all ranks; 0 for a query that no rank owns a target for.
    """
    with torch.no_grad():
        product = queries.new_zeros(len(queries))
        if len(centres):
            rows = columns.clamp(min=0)
            own = centres[rows]
            if normalise:
                own = own / own.norm(dim=1, keepdim=True).clamp(min=MIN_NORM)
            # not a matrix product: exact float32 even where those may round their input (TF32)
            product = (queries * own).sum(1)
            if bias is not None:
                product += bias[rows]
            product = torch.where(columns >= 0, product, 0)
        return dist.all_reduce_sum(product)


def walk_classes(
    queries: Tensor, centres: Tensor, bias: Tensor | None, columns: Tensor, target: Tensor, options: WalkOptions
) -> tuple[Tensor, Tensor, Tensor]:
    """Reduce the logits of all ranks' classes to three numbers a query. Collective, forward only; differentiable once.

    Args:
        queries: [N, D], the same on all ranks, of the centres' type.
        centres: [rows, D], this rank's; rows may be 0.
        bias: [rows] or None.
        columns: [N] int64, the target's row on this rank, negative where another rank owns it.
        target: [N], `target_product` of the same arguments.
        options: see there.

    Returns:
        target [N], the same values with a graph; negative_lse [N], log Σ_{j≠y} exp(z_j), −inf without another class;
        negative_max [N], max_{j≠y} z_j, without a graph. All the same on all ranks. When every rank backpropagates
        the same loss, the centres get its exact gradient, the queries this rank's part of it times the number of
        ranks: the parts' sum then agrees with the gradient of whatever all ranks compute in the same way.
    """
    return cast(tuple[Tensor, Tensor, Tensor], _Walk.apply(queries, centres, bias, columns, target, options))


class _Walk(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        centres: Tensor,
        bias: Tensor | None,
        columns: Tensor,
        target: Tensor,
        options: WalkOptions,
    ) -> tuple[Tensor, Tensor, Tensor]:
        greatest = queries.new_full((len(queries),), -torch.inf)
        total = torch.zeros_like(greatest)
        kept = None
        for start, stop in _blocks(len(centres), options.block_rows):
            logits = _product(queries, _rows(centres, start, stop, options.normalise)[0], bias, start, stop)
            if stop - start == len(centres):
                kept = logits
            logits = options.transform(logits) if options.transform else logits
            is_shared = logits is kept
            _set_targets(logits, columns - start, -torch.inf)
            block_greatest = torch.maximum(greatest, logits.amax(1))
            floor = _finite(block_greatest)
            shifted = logits - floor[:, None] if is_shared else logits.sub_(floor[:, None])
            total = total * (greatest - floor).exp() + shifted.exp_().sum(1)
            greatest = block_greatest
        global_greatest = dist.all_reduce_max(greatest.clone())
        floor = _finite(global_greatest)
        total = dist.all_reduce_sum(total * (greatest - floor).exp())
        negative_lse = floor + total.log()
        ctx.options = options
        ctx.save_for_backward(queries, centres, bias, columns, negative_lse, kept)
        ctx.mark_non_differentiable(global_greatest)
        return target.clone(), negative_lse, global_greatest

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        target_gradient, lse_gradient = gradients[0], gradients[1]
        queries, centres, bias, columns, negative_lse, kept = ctx.saved_tensors
        options: WalkOptions = ctx.options
        queries_gradient = torch.zeros_like(queries)
        centres_gradient = torch.empty_like(centres)
        bias_gradient = None if bias is None else torch.empty_like(bias)
        floor = _finite(negative_lse)
        # autocast may be on where backward() is called, and would run these products in its narrow type
        with torch.autocast(queries.device.type, enabled=False):
            for start, stop in _blocks(len(centres), options.block_rows):
                rows, lengths = _rows(centres, start, stop, options.normalise)
                logits = _product(queries, rows, bias, start, stop) if kept is None else kept
                gradient = _logits_gradient(logits, floor, lse_gradient, columns - start, options.transform)
                # the target's own gradient rides along in the same two products, without a scatter into the centres
                _set_targets(gradient, columns - start, target_gradient)
                queries_gradient.addmm_(gradient, rows)
                part = torch.mm(gradient.t(), queries, out=centres_gradient[start:stop])
                if lengths is not None:
                    # through w / |w|: only what is perpendicular to w moves the direction
                    part.sub_(rows * (rows * part).sum(1, keepdim=True)).div_(lengths)
                if bias_gradient is not None:
                    torch.sum(gradient, 0, out=bias_gradient[start:stop])
        queries_gradient *= dist.world_size()
        return queries_gradient, centres_gradient, bias_gradient, None, None, None


def _blocks(num_rows: int, block_rows: int) -> Iterator[tuple[int, int]]:
    for start in range(0, num_rows, block_rows):
        yield start, min(start + block_rows, num_rows)


def _rows(centres: Tensor, start: int, stop: int, normalise: bool) -> tuple[Tensor, Tensor | None]:
    """A block of class centres [n, D], of unit length if `normalise`, then with the lengths [n, 1] they had."""
    rows = centres[start:stop]
    if not normalise:
        return rows, None
    lengths = rows.norm(dim=1, keepdim=True).clamp(min=MIN_NORM)
    return rows / lengths, lengths


def _product(queries: Tensor, rows: Tensor, bias: Tensor | None, start: int, stop: int) -> Tensor:
    if bias is None:
        return queries @ rows.t()
    return torch.addmm(bias[start:stop], queries, rows.t())


def _logits_gradient(
    logits: Tensor, floor: Tensor, lse_gradient: Tensor, columns: Tensor, transform: NegativeTransform | None
) -> Tensor:
    """Gradient [N, n] of a block's logits, wrong at the targets: softmax over the negatives times the incoming one."""
    if transform is None:
        return (logits - floor[:, None]).exp_().mul_(lse_gradient[:, None])
    with torch.enable_grad():
        leaf = logits.detach().requires_grad_()
        transformed = transform(leaf)
    probability = transformed.detach().clone()
    _set_targets(probability, columns, -torch.inf)
    probability.sub_(floor[:, None]).exp_().mul_(lse_gradient[:, None])
    (gradient,) = torch.autograd.grad(transformed, leaf, probability)
    return gradient


def _set_targets(block: Tensor, columns: Tensor, value: Tensor | float) -> None:
    """Set each row's target column, where this block has it, to `value` ([N] or a number), in place.

    Without a list of the rows concerned, whose length would have to travel from the device to the host.
    """
    inside = (columns >= 0) & (columns < block.shape[1])
    index = columns.clamp(0, block.shape[1] - 1)[:, None]
    chosen = torch.where(inside, value, block.gather(1, index).squeeze(1))
    block.scatter_(1, index, chosen.to(block.dtype)[:, None])


def _finite(values: Tensor) -> Tensor:
    """Zero instead of −inf, for what is subtracted before exp: −inf − −inf would be NaN."""
    return torch.where(values == -torch.inf, 0, values)
