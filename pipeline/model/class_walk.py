"""The walk over a rank's class centres: log-sum-exp of all logits but the target's, without ever holding all logits.

For queries q_i (embeddings times scale) and a rank's class centres w_j, the logits are z_ij = q_i·w_j/|w_j| + b_j (or
without the division). A block of rows at a time (`class_blocks`) gives its logits [N, n] to an online log-sum-exp
(`block_reduction`); the backward pass forms each block again, but for the first blocks, which are kept as far as a
memory budget goes. Memory is O(N·D + rows·D) plus one block and the budget; a block that is formed again costs a fourth
matrix product beside the three of a dense layer.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from pipeline import dist
from pipeline.model import triton_blocks
from pipeline.model.block_reduction import (
    Kept,
    finite,
    gradient_of_exponentials,
    logits_gradient,
    reduce_by_blocks,
    set_targets,
)
from pipeline.model.class_blocks import ClassBlocks, WalkOptions, inverse_lengths, rounded
from pipeline.model.gradient_memory import new_gradient


class Walked(NamedTuple):
    """What a walk gives for each query, the same on all ranks."""

    target: Tensor
    """[N], `target_product`'s values with a graph."""
    reduced: Tensor
    """[N], the reduction over all classes but the target; log-sum-exp of nothing is −inf."""
    greatest: Tensor
    """[N], the greatest logit but the target's, without a graph."""
    logit_sum: Tensor | None
    """[N], sum of all logits but the target's and those that a transform made −inf; None unless `sums_logits`."""
    num_summed: Tensor | None
    """[N], how many they are, of the logits' type, without a graph."""


def target_product(
    queries: Tensor, centres: Tensor, bias: Tensor | None, columns: Tensor, options: WalkOptions
) -> Tensor:
    """Logit of each query's own class before any margin, wherever its centre lives. Collective; without a graph.

    Args:
        queries: [N, D].
        centres: [classes · K, D], this rank's.
        bias: [classes] or None.
        columns: [N] int64, the target's class on this rank, negative where another rank owns it.
        options: see there.

    Returns:
        [N], the same on all ranks; 0 for a query that no rank owns a target for.
    """
    with torch.no_grad():
        product = queries.new_zeros(len(queries))
        if len(centres):
            classes = columns.clamp(min=0)
            own = centres.view(-1, options.num_subcentres, centres.shape[1])[classes]
            inverse = inverse_lengths(own.flatten(0, 1)).view(own.shape[:2]) if options.normalise else None
            if options.is_bf16:
                queries, own = rounded(queries), rounded(own)
            # not a matrix product: exact float32 even where those may round their input (TF32)
            products = (queries[:, None] * own).sum(2)
            product = (products if inverse is None else products * inverse).amax(1)
            if bias is not None:
                product += bias[classes]
            product = torch.where(columns >= 0, product, 0)
        return dist.all_reduce_sum(product)


def target_length(centres: Tensor, columns: Tensor) -> Tensor:
    """Length of each query's own class centre, wherever it lives. Collective; differentiable.

    Args:
        centres: [classes, D], this rank's.
        columns: [N] int64, as in `target_product`.

    Returns:
        [N], the same on all ranks. The centres get the exact gradient of a loss that all ranks compute alike.
    """
    lengths = torch.zeros(len(columns), dtype=centres.dtype, device=centres.device)
    if len(centres):
        lengths = torch.where(columns >= 0, torch.linalg.vector_norm(centres[columns.clamp(min=0)], dim=1), 0)
    # its own part keeps its graph; what the others add is a constant here
    return lengths + (dist.all_reduce_sum(lengths.detach().clone()) - lengths.detach())


def walk_classes(
    queries: Tensor, centres: Tensor, bias: Tensor | None, columns: Tensor, target: Tensor, options: WalkOptions
) -> Walked:
    """Reduce the logits of all ranks' classes to a few numbers a query. Collective, forward only; differentiable once.

    Args:
        queries: [N, D], the same on all ranks, of the centres' type.
        centres: [classes · K, D], this rank's; there may be none.
        bias: [classes] or None.
        columns: [N] int64, the target's class on this rank, negative where another rank owns it.
        target: [N], `target_product` of the same arguments.
        options: see there.

    Returns:
        See `Walked`. When every rank backpropagates the same loss, the centres get its exact gradient, the queries
        this rank's part of it times the number of ranks: the parts' sum then agrees with the gradient of whatever all
        ranks compute in the same way.
    """
    return Walked(*cast(_Numbers, _Walk.apply(queries, centres, bias, columns, target, options)))


_Numbers = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]


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
    ) -> _Numbers:
        blocks = ClassBlocks(queries, centres, bias, options)
        kept: list[Kept] = []
        if is_fused(queries, options):
            numbers: tuple[Tensor, ...] = triton_blocks.reduce_classes(*blocks.fused_arguments(columns))
        else:
            numbers = reduce_by_blocks(blocks, columns, options, kept)
        # sums over ranks, whose size does not grow with their number: gathered, the parts would fill R x N places
        greatest, sums = numbers[0], torch.stack(numbers[1:])
        global_greatest = dist.all_reduce_max(greatest.clone())
        if options.reduction == "softplus_sum":
            reduced = dist.all_reduce_sum(sums)[0].clone()
        else:
            floor = finite(global_greatest)
            sums[0] *= (greatest - floor).exp_()
            reduced = floor + dist.all_reduce_sum(sums)[0].log()
        ctx.options, ctx.kept, ctx.inverse = options, kept, blocks.inverse
        ctx.parameter = centres if centres._base is None else centres._base  # sub-centres come as a view
        ctx.save_for_backward(queries, centres, bias, columns, reduced)
        if not options.sums_logits:
            ctx.mark_non_differentiable(global_greatest)
            return target.clone(), reduced, global_greatest, None, None
        logit_sum, num_summed = sums[1].clone(), sums[2].clone()
        ctx.mark_non_differentiable(global_greatest, num_summed)
        return target.clone(), reduced, global_greatest, logit_sum, num_summed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        target_gradient, reduced_gradient, sum_gradient = gradients[0], gradients[1], gradients[3]
        queries, centres, bias, columns, reduced = ctx.saved_tensors
        options: WalkOptions = ctx.options
        kept: list[Kept] = ctx.kept
        ctx.kept = []  # they are overwritten below: a second backward pass forms them again
        blocks = ClassBlocks(queries, centres, bias, options, ctx.inverse)
        queries_gradient = torch.zeros_like(queries)
        centres_gradient = new_gradient(centres, ctx.parameter)
        bias_gradient = None if bias is None else new_gradient(bias, bias)
        # autocast may be on where backward() is called, and would run these products in its narrow type
        with torch.autocast(queries.device.type, enabled=False):
            for number, (start, stop) in enumerate(blocks.ranges()):
                if is_fused(queries, options):
                    gradient = triton_blocks.classes_gradient(
                        *blocks.fused_arguments(columns),
                        reduced,
                        reduced_gradient.contiguous(),
                        target_gradient.contiguous(),
                        start,
                        stop,
                        torch.bfloat16,
                    )
                    if bias_gradient is not None:
                        torch.sum(gradient, 0, dtype=bias.dtype, out=bias_gradient[start:stop])
                    blocks.add_gradients(start, stop, gradient, queries_gradient, centres_gradient)
                    continue
                chosen = None
                if number < len(kept) and kept[number].floor is not None:
                    gradient = gradient_of_exponentials(kept[number], reduced, reduced_gradient)
                    if options.sums_logits:
                        gradient.add_(sum_gradient[:, None])
                else:
                    logits, chosen = (kept[number].block, None) if number < len(kept) else blocks.logits(start, stop)
                    gradient = logits_gradient(
                        logits, reduced, reduced_gradient, sum_gradient, columns - start, options
                    )
                if bias_gradient is not None:
                    set_targets(gradient, columns - start, target_gradient if options.is_bias_on_target else 0.0)
                    torch.sum(gradient, 0, out=bias_gradient[start:stop])
                # the target's own gradient rides along in the same two products, without a scatter into the centres
                set_targets(gradient, columns - start, target_gradient)
                if chosen is not None:
                    whole = gradient.new_zeros((*gradient.shape, options.num_subcentres))
                    gradient = whole.scatter_(2, chosen, gradient[:, :, None]).flatten(1)
                blocks.add_gradients(start, stop, gradient, queries_gradient, centres_gradient)
        queries_gradient *= dist.world_size()
        return queries_gradient, centres_gradient, bias_gradient, None, None, None


def is_fused(queries: Tensor, options: WalkOptions) -> bool:
    """Whether the walk takes the way of `triton_blocks`, where logits never leave the chip."""
    return (
        options.is_bf16
        and queries.dtype == torch.float32
        and options.transform is None
        and not options.sums_logits
        and options.reduction == "log_sum_exp"
        and options.num_subcentres == 1
        and triton_blocks.is_available(queries.device)
    )
