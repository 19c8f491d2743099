"""What a block of logits adds to the reduction over all classes, and the reduction's gradient in the block's memory."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.model.class_blocks import ClassBlocks, WalkOptions


class Kept(NamedTuple):
    """A block that the backward pass does not form again."""

    block: Tensor
    """[N, n] logits, or exp(logits − floor), 0 at targets."""
    floor: Tensor | None
    """[N], finite; None for logits."""


def reduce_by_blocks(
    blocks: ClassBlocks, columns: Tensor, options: WalkOptions, kept: list[Kept]
) -> tuple[Tensor, ...]:
    """Greatest logit [N] and, relative to it, the reduction [N] over this rank's classes; where asked for, the sum of
    the logits and their number, [N] each.

    Args:
        blocks: this rank's.
        columns: [N] int64, the target's class on this rank, negative where another rank owns it.
        options: see there.
        kept: empty; filled with the first `blocks.num_kept` blocks.
    """
    total = blocks.queries.new_zeros(len(blocks.queries))
    greatest = torch.full_like(total, -torch.inf)
    logit_sum, num_summed = torch.zeros_like(total), torch.zeros_like(total)
    keeps_exponentials = options.transform is None and options.reduction == "log_sum_exp"
    for start, stop in blocks.ranges():
        logits, _ = blocks.logits(start, stop)
        is_kept = len(kept) < blocks.num_kept
        values = options.transform(logits) if options.transform else logits
        if is_kept and not keeps_exponentials:
            kept.append(Kept(logits, None))
            values = values.clone() if values is logits else values
        set_targets(values, columns - start, -torch.inf)
        if options.sums_logits:
            is_summed = values > -torch.inf
            logit_sum += torch.where(is_summed, values, 0).sum(1)
            num_summed += is_summed.sum(1)
        block_greatest = torch.maximum(greatest, values.amax(1))
        if options.reduction == "softplus_sum":
            total += functional.softplus(values).sum(1)
        else:
            floor = finite(block_greatest)
            values.sub_(floor[:, None]).exp_()
            total = total * (greatest - floor).exp_() + values.sum(1)
            if is_kept and keeps_exponentials:
                kept.append(Kept(values, floor))
        greatest = block_greatest
    return (greatest, total, logit_sum, num_summed) if options.sums_logits else (greatest, total)


def gradient_of_exponentials(kept: Kept, reduced: Tensor, reduced_gradient: Tensor) -> Tensor:
    """As `logits_gradient`, from exp(z − floor): one multiplication in the block's memory."""
    assert kept.floor is not None
    # a floor is above the log-sum-exp only where it stands for a block without any class, whose exponentials are 0
    weight = (kept.floor - finite(reduced)).clamp_(max=0).exp_().mul_(reduced_gradient)
    return kept.block.mul_(weight[:, None])


def logits_gradient(
    logits: Tensor,
    reduced: Tensor,
    reduced_gradient: Tensor,
    sum_gradient: Tensor | None,
    columns: Tensor,
    options: WalkOptions,
) -> Tensor:
    """Gradient [N, n] of a block's logits, wrong at the targets, in the logits' memory where there is no transform.

    Args:
        logits: [N, n], overwritten.
        reduced: [N], over all classes of all ranks.
        reduced_gradient: [N], the loss's derivative by `reduced`.
        sum_gradient: [N], the loss's derivative by the sum of the logits; None where nobody asked for the sum.
        columns: [N] int64, the target's column in this block, outside [0, n) where it has none.
        options: see there.
    """
    if options.transform is None:
        gradient = _reduction_gradient(logits, reduced, options).mul_(reduced_gradient[:, None])
        return gradient if sum_gradient is None else gradient.add_(sum_gradient[:, None])
    with torch.enable_grad():
        leaf = logits.detach().requires_grad_()
        transformed = options.transform(leaf)
    values = transformed.detach().clone()
    set_targets(values, columns, -torch.inf)
    incoming = _reduction_gradient(values, reduced, options).mul_(reduced_gradient[:, None])
    if sum_gradient is not None:
        incoming.add_(sum_gradient[:, None])
    (gradient,) = torch.autograd.grad(transformed, leaf, incoming)
    return gradient


def _reduction_gradient(values: Tensor, reduced: Tensor, options: WalkOptions) -> Tensor:
    """Derivative of the reduction by each of its values [N, n], in their memory."""
    if options.reduction == "softplus_sum":
        return values.sigmoid_()
    return values.sub_(finite(reduced)[:, None]).exp_()


def set_targets(block: Tensor, columns: Tensor, value: Tensor | float) -> None:
    """Set each row's target column, where this block has it, to `value` ([N] or a number), in place.

    Without a list of the rows concerned, whose length would have to travel from the device to the host.
    """
    inside = (columns >= 0) & (columns < block.shape[1])
    index = columns.clamp(0, block.shape[1] - 1)[:, None]
    chosen = torch.where(inside, value, block.gather(1, index).squeeze(1))
    block.scatter_(1, index, chosen.to(block.dtype)[:, None])


def finite(values: Tensor) -> Tensor:
    """Zero instead of −inf, for what is subtracted before exp: −inf − −inf would be NaN."""
    return torch.where(values == -torch.inf, 0, values)
