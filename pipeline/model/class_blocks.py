"""The walk over a rank's class centres: log-sum-exp of all logits but the target's, without ever holding all logits.

For queries q_i (embeddings times scale) and a rank's class centres w_j, the logits are z_ij = q_i·w_j/|w_j| + b_j (or
without the division). A block of rows at a time gives its logits [N, n] to an online log-sum-exp; the backward pass
forms each block again, but for the first blocks, which are kept as far as a memory budget goes. Memory is
O(N·D + rows·D) plus one block and the budget; a block that is formed again costs a fourth matrix product beside the
three of a dense layer.

Rows are never copied to unit length: a logit's column is divided by the row's length instead, which touches N numbers a
class where the copy would touch D, in each direction, and leaves the rows where they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional

from pipeline import dist
from pipeline.model import triton_blocks
from pipeline.model.huge_pages import in_huge_pages
from pipeline.model.margins.base import NegativeTransform

MIN_NORM = 1e-12
"""Floor of a class centre's length where it divides."""

Reduction = Literal["log_sum_exp", "softplus_sum"]
"""What becomes of a query's logits, its target's left out: log Σ exp(z), or Σ log(1 + exp(z))."""


@dataclass(frozen=True)
class WalkOptions:
    """What does not change the types of a walk's tensors."""

    normalise: bool
    """Divide each class centre by its length."""
    block_rows: int
    """Classes a block."""
    keep_bytes: int = 0
    """Memory for blocks of logits that are kept for the backward pass."""
    transform: NegativeTransform | None = None
    """Elementwise map of the logits; the target's own are not touched."""
    reduction: Reduction = "log_sum_exp"
    """See there."""
    sums_logits: bool = False
    """Add the logits up, too; with log_sum_exp."""
    is_bias_on_target: bool = True
    """Whether the target's logit has the bias too."""
    num_subcentres: int = 1
    """K: consecutive rows of one class, of which the most similar one counts."""
    is_bf16: bool = False
    """Round the factors of all matrix products to bfloat16; sums are float32."""


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
            inverse = _inverse_lengths(own.flatten(0, 1)).view(own.shape[:2]) if options.normalise else None
            if options.is_bf16:
                queries, own = _rounded(queries), _rounded(own)
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
        blocks = _Blocks(queries, centres, bias, options)
        kept: list[_Kept] = []
        if is_fused(queries, options):
            numbers: tuple[Tensor, ...] = triton_blocks.reduce_classes(*blocks.fused_arguments(columns))
        else:
            numbers = _reduce_by_blocks(blocks, columns, options, kept)
        # one collective for all: their sizes are nothing beside its latency
        parts = dist.all_gather_rows(torch.stack(numbers)).view(-1, len(numbers), len(queries))
        global_greatest = parts[:, 0].amax(0)
        if options.reduction == "softplus_sum":
            reduced = parts[:, 1].sum(0)
        else:
            floor = _finite(global_greatest)
            reduced = floor + (parts[:, 1] * (parts[:, 0] - floor).exp_()).sum(0).log_()
        ctx.options, ctx.kept, ctx.inverse = options, kept, blocks.inverse
        ctx.save_for_backward(queries, centres, bias, columns, reduced)
        if not options.sums_logits:
            ctx.mark_non_differentiable(global_greatest)
            return target.clone(), reduced, global_greatest, None, None
        logit_sum, num_summed = parts[:, 2].sum(0), parts[:, 3].sum(0)
        ctx.mark_non_differentiable(global_greatest, num_summed)
        return target.clone(), reduced, global_greatest, logit_sum, num_summed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        target_gradient, reduced_gradient, sum_gradient = gradients[0], gradients[1], gradients[3]
        queries, centres, bias, columns, reduced = ctx.saved_tensors
        options: WalkOptions = ctx.options
        kept: list[_Kept] = ctx.kept
        ctx.kept = []  # they are overwritten below: a second backward pass forms them again
        blocks = _Blocks(queries, centres, bias, options, ctx.inverse)
        queries_gradient = torch.zeros_like(queries)
        centres_gradient = in_huge_pages(torch.empty_like(centres))
        bias_gradient = None if bias is None else torch.empty_like(bias)
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
                    gradient = _gradient_of_exponentials(kept[number], reduced, reduced_gradient)
                    if options.sums_logits:
                        gradient.add_(sum_gradient[:, None])
                else:
                    logits, chosen = (kept[number].block, None) if number < len(kept) else blocks.logits(start, stop)
                    gradient = _logits_gradient(
                        logits, reduced, reduced_gradient, sum_gradient, columns - start, options
                    )
                if bias_gradient is not None:
                    _set_targets(gradient, columns - start, target_gradient if options.is_bias_on_target else 0.0)
                    torch.sum(gradient, 0, out=bias_gradient[start:stop])
                # the target's own gradient rides along in the same two products, without a scatter into the centres
                _set_targets(gradient, columns - start, target_gradient)
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


def _reduce_by_blocks(blocks: _Blocks, columns: Tensor, options: WalkOptions, kept: list[_Kept]) -> tuple[Tensor, ...]:
    """Greatest logit [N] and, relative to it, the reduction [N] over this rank's classes; where asked for, the sum of
    the logits and their number, [N] each. Fills `kept`."""
    total = blocks.queries.new_zeros(len(blocks.queries))
    greatest = torch.full_like(total, -torch.inf)
    logit_sum, num_summed = torch.zeros_like(total), torch.zeros_like(total)
    keeps_exponentials = options.transform is None and options.reduction == "log_sum_exp"
    for start, stop in blocks.ranges():
        logits, _ = blocks.logits(start, stop)
        is_kept = len(kept) < blocks.num_kept
        values = options.transform(logits) if options.transform else logits
        if is_kept and not keeps_exponentials:
            kept.append(_Kept(logits, None))
            values = values.clone() if values is logits else values
        _set_targets(values, columns - start, -torch.inf)
        if options.sums_logits:
            is_summed = values > -torch.inf
            logit_sum += torch.where(is_summed, values, 0).sum(1)
            num_summed += is_summed.sum(1)
        block_greatest = torch.maximum(greatest, values.amax(1))
        if options.reduction == "softplus_sum":
            total += functional.softplus(values).sum(1)
        else:
            floor = _finite(block_greatest)
            values.sub_(floor[:, None]).exp_()
            total = total * (greatest - floor).exp_() + values.sum(1)
            if is_kept and keeps_exponentials:
                kept.append(_Kept(values, floor))
        greatest = block_greatest
    return (greatest, total, logit_sum, num_summed) if options.sums_logits else (greatest, total)


class _Kept(NamedTuple):
    """A block that the backward pass does not form again."""

    block: Tensor
    """[N, n] logits, or exp(logits − floor), 0 at targets."""
    floor: Tensor | None
    """[N], finite; None for logits."""


class _Blocks:
    """A rank's class centres, block by block; classes are counted, of K rows each.

    Args:
        queries, centres, bias, options: see `walk_classes`.
        inverse: [classes · K], an earlier object's; None: found along with the logits.
    """

    def __init__(
        self, queries: Tensor, centres: Tensor, bias: Tensor | None, options: WalkOptions, inverse: Tensor | None = None
    ) -> None:
        self.queries, self._centres, self._bias, self._options = queries, centres, bias, options
        self._num_classes = len(centres) // options.num_subcentres
        self._has_inverse = inverse is not None
        self.inverse = inverse
        """[classes · K], one over each row's length, where rows are normalised."""
        if inverse is None and options.normalise:
            self.inverse = torch.empty(len(centres), dtype=centres.dtype, device=centres.device)
        block_bytes = min(options.block_rows, max(1, self._num_classes)) * len(queries) * queries.element_size()
        self.num_kept = options.keep_bytes // max(1, block_bytes) if options.num_subcentres == 1 else 0
        """How many blocks of logits, from the first, the budget keeps."""

    def ranges(self) -> Iterator[tuple[int, int]]:
        """First class and end of each block."""
        for start in range(0, self._num_classes, self._options.block_rows):
            yield start, min(start + self._options.block_rows, self._num_classes)

    def logits(self, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        """Logits [N, n] of the classes' most similar rows, and which these are: [N, n, 1] int64, None for K = 1."""
        rows = self._rows(start, stop)
        products = _product(self.queries, rows.t(), self._options)
        inverse = self._inverse(start, stop, rows)
        if inverse is not None:
            products.mul_(inverse)
        chosen = None
        if self._options.num_subcentres > 1:
            greatest, chosen = products.view(len(products), -1, self._options.num_subcentres).max(2, keepdim=True)
            products = greatest.squeeze(2)
        if self._bias is not None:
            products.add_(self._bias[start:stop])
        return products, chosen

    def add_gradients(
        self, start: int, stop: int, gradient: Tensor, queries_gradient: Tensor, centres_gradient: Tensor
    ) -> None:
        """Carry the gradient [N, n · K] of a block's products to queries (added) and rows (set); overwrites it."""
        rows = self._rows(start, stop)
        inverse = self._inverse(start, stop, rows)
        if inverse is not None:
            gradient.mul_(inverse)
        k = self._options.num_subcentres
        part = centres_gradient[start * k : stop * k]
        if self._options.is_bf16:
            queries_gradient.add_(_product(gradient, rows, self._options))
            part.copy_(_product(gradient.t(), self.queries, self._options))
        else:
            queries_gradient.addmm_(gradient, rows)
            torch.mm(gradient.t(), self.queries, out=part)
        if inverse is not None:
            # through w / |w|: only what is perpendicular to w moves the direction
            along = torch.linalg.vecdot(rows, part).mul_(inverse).mul_(inverse)
            part.addcmul_(rows, along[:, None], value=-1)

    def fused_arguments(self, columns: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]:
        """What the functions of `triton_blocks` begin with."""
        inverse = self._inverse(0, self._num_classes, self._centres)
        self._has_inverse = True
        if inverse is None:
            inverse = torch.ones(len(self._centres), device=self._centres.device)
        bias = None if self._bias is None else self._bias.contiguous()
        return self.queries.to(torch.bfloat16), self._centres, inverse, bias, columns

    def _rows(self, start: int, stop: int) -> Tensor:
        k = self._options.num_subcentres
        return self._centres[start * k : stop * k]

    def _inverse(self, start: int, stop: int, rows: Tensor) -> Tensor | None:
        if self.inverse is None:
            return None
        k = self._options.num_subcentres
        part = self.inverse[start * k : stop * k]
        if not self._has_inverse:
            part.copy_(_inverse_lengths(rows))
        return part


def _inverse_lengths(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows, dim=1).clamp_(min=MIN_NORM).reciprocal_()


def _rounded(x: Tensor) -> Tensor:
    """To bfloat16 and back: products of such factors are exact in float32, as tensor cores form them."""
    return x.to(torch.bfloat16).to(x.dtype)


def _product(left: Tensor, right: Tensor, options: WalkOptions) -> Tensor:
    """Matrix product, in float32 or more; bfloat16 factors where asked for."""
    if not options.is_bf16:
        return left @ right
    if left.device.type == "cuda":
        return torch.mm(left.to(torch.bfloat16), right.to(torch.bfloat16), out_dtype=torch.float32)
    # a CPU would round the result too
    return _rounded(left).to(right.dtype) @ _rounded(right)


def _gradient_of_exponentials(kept: _Kept, reduced: Tensor, reduced_gradient: Tensor) -> Tensor:
    """As `_logits_gradient`, from exp(z − floor): one multiplication in the block's memory."""
    assert kept.floor is not None
    # a floor is above the log-sum-exp only where it stands for a block without any class, whose exponentials are 0
    weight = (kept.floor - _finite(reduced)).clamp_(max=0).exp_().mul_(reduced_gradient)
    return kept.block.mul_(weight[:, None])


def _logits_gradient(
    logits: Tensor,
    reduced: Tensor,
    reduced_gradient: Tensor,
    sum_gradient: Tensor | None,
    columns: Tensor,
    options: WalkOptions,
) -> Tensor:
    """Gradient [N, n] of a block's logits, wrong at the targets, in the logits' memory where there is no transform."""
    if options.transform is None:
        gradient = _reduction_gradient(logits, reduced, options).mul_(reduced_gradient[:, None])
        return gradient if sum_gradient is None else gradient.add_(sum_gradient[:, None])
    with torch.enable_grad():
        leaf = logits.detach().requires_grad_()
        transformed = options.transform(leaf)
    values = transformed.detach().clone()
    _set_targets(values, columns, -torch.inf)
    incoming = _reduction_gradient(values, reduced, options).mul_(reduced_gradient[:, None])
    if sum_gradient is not None:
        incoming.add_(sum_gradient[:, None])
    (gradient,) = torch.autograd.grad(transformed, leaf, incoming)
    return gradient


def _reduction_gradient(values: Tensor, reduced: Tensor, options: WalkOptions) -> Tensor:
    """Derivative of the reduction by each of its values [N, n], in their memory."""
    if options.reduction == "softplus_sum":
        return values.sigmoid_()
    return values.sub_(_finite(reduced)[:, None]).exp_()


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
