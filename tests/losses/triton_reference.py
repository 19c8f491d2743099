"""A dense float64 softmax over a rank's classes, the same loss composed of the Triton kernels, and cases for both."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.model import triton_blocks
from pipeline.model.class_blocks import MIN_NORM, WalkOptions
from pipeline.model.class_walk import target_product, walk_classes


@dataclass(frozen=True)
class Inputs:
    """Queries [N, D], class centres [rows, D], bias [rows] or None, columns [N] int64."""

    queries: Tensor
    centres: Tensor
    bias: Tensor | None
    columns: Tensor
    normalise: bool

    def to(self, queries: torch.dtype, centres: torch.dtype) -> Inputs:
        bias = None if self.bias is None else self.bias.float()
        return Inputs(self.queries.to(queries), self.centres.to(centres), bias, self.columns, self.normalise)

    def double(self) -> Inputs:
        bias = None if self.bias is None else self.bias.double()
        return Inputs(self.queries.double(), self.centres.double(), bias, self.columns, self.normalise)


@dataclass(frozen=True)
class Result:
    """The loss, what it is made of, and its gradients."""

    loss: Tensor
    negative_lse: Tensor
    negative_max: Tensor
    queries: Tensor
    centres: Tensor
    bias: Tensor | None


def make_inputs(
    num_queries: int, num_rows: int, dim: int, *, scale: float = 16.0, has_bias: bool = False, device: str = "cpu"
) -> Inputs:
    """Numbers that bfloat16 holds exactly, so that every type computes with the same ones.

    Normalised unless there is a bias. Every third query's own class is on another rank, the last class is someone's.
    """
    generator = torch.Generator(device).manual_seed(num_queries * num_rows + dim)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    columns = torch.randint(0, num_rows, (num_queries,), generator=generator, device=device)
    columns[::3] = -1
    columns[-1] = num_rows - 1
    centres = (0.05 * normal(num_rows, dim)).bfloat16()
    own = functional.normalize(centres[columns.clamp(min=0)].float(), dim=1)
    queries = scale * functional.normalize(functional.normalize(normal(num_queries, dim), dim=1) + own, dim=1)
    return Inputs(
        queries.bfloat16().float(), centres.float(), normal(num_rows) if has_bias else None, columns, not has_bias
    )


def inverse_lengths(inputs: Inputs) -> Tensor:
    if not inputs.normalise:
        return torch.ones(len(inputs.centres), device=inputs.centres.device)
    return inputs.centres.float().norm(dim=1).clamp(min=MIN_NORM).reciprocal()


def loss_of(target: Tensor, negative_lse: Tensor) -> Tensor:
    """Cross-entropy with a margin, unequally weighted samples."""
    weights = torch.linspace(0.5, 1.5, len(target), dtype=target.dtype, device=target.device)
    return (weights * functional.softplus(negative_lse - (target - 4), threshold=40)).mean()


def dense(inputs: Inputs) -> Result:
    """The whole matrix of logits, float64 and autograd."""
    inputs = inputs.double()
    queries, centres = inputs.queries.requires_grad_(), inputs.centres.requires_grad_()
    bias = None if inputs.bias is None else inputs.bias.requires_grad_()
    logits = queries @ (functional.normalize(centres) if inputs.normalise else centres).t()
    if bias is not None:
        logits = logits + bias
    is_target = inputs.columns[:, None] == torch.arange(len(centres), device=centres.device)
    target = torch.where(is_target, logits, 0).sum(1)
    # not −inf, whose gradient would be NaN where a row has nothing else
    negatives = torch.where(is_target, -1e300, logits)
    negative_lse = negatives.logsumexp(1)
    loss = loss_of(target, negative_lse)
    loss.backward()
    assert queries.grad is not None
    assert centres.grad is not None
    return Result(
        loss.detach(),
        _infinite(negative_lse.detach()),
        _infinite(negatives.amax(1).detach()),
        queries.grad,
        centres.grad,
        None if bias is None else bias.grad,
    )


def walk(inputs: Inputs, block_rows: int, is_bf16: bool = False) -> Result:
    """The same through `walk_classes`."""
    queries, centres = inputs.queries.clone().requires_grad_(), inputs.centres.clone().requires_grad_()
    bias = None if inputs.bias is None else inputs.bias.clone().requires_grad_()
    arguments = (queries, centres, bias, inputs.columns)
    options = WalkOptions(inputs.normalise, block_rows, is_bf16=is_bf16)
    target, negative_lse, negative_max, *_ = walk_classes(*arguments, target_product(*arguments, options), options)
    loss = loss_of(target, negative_lse)
    loss.backward()
    assert queries.grad is not None
    assert centres.grad is not None
    return Result(
        loss.detach(),
        negative_lse.detach(),
        negative_max,
        queries.grad,
        centres.grad,
        None if bias is None else bias.grad,
    )


def composed(
    inputs: Inputs,
    block_rows: int,
    input_precision: triton_blocks.InputPrecision = "ieee",
    target: Inputs | None = None,
) -> Result:
    """The same through the Triton kernels, in one process; gradients of logits are of the queries' type.

    `target`: inputs that the own class's logit is computed from, in float32; None: the same ones.
    """
    queries, centres, bias, columns = inputs.queries, inputs.centres, inputs.bias, inputs.columns
    lengths = inverse_lengths(inputs)
    own = inputs if target is None else target
    options = WalkOptions(inputs.normalise, block_rows)
    target_logit = target_product(own.queries.float(), own.centres.float(), bias, columns, options)
    greatest, total = triton_blocks.reduce_classes(queries, centres, lengths, bias, columns, input_precision)
    negative_lse = greatest.masked_fill(greatest == -torch.inf, 0) + total.log()
    with torch.enable_grad():
        leaves = target_logit.requires_grad_(), negative_lse.clone().requires_grad_()
        loss = loss_of(*leaves)
        target_gradient, lse_gradient = torch.autograd.grad(loss, leaves)
    queries_gradient = torch.zeros_like(queries, dtype=torch.float32)
    centres_gradient = torch.zeros_like(centres, dtype=torch.float32)
    bias_gradient = None if bias is None else torch.zeros_like(bias)
    for start in range(0, len(centres), block_rows):
        stop = min(start + block_rows, len(centres))
        block = slice(start, stop)
        gradient = triton_blocks.classes_gradient(
            queries,
            centres,
            lengths,
            bias,
            columns,
            negative_lse,
            lse_gradient,
            target_gradient,
            start,
            stop,
            queries.dtype,
            input_precision,
        )
        rows = (centres[block].float() * lengths[block, None]).to(queries.dtype)
        # products of narrow inputs that add up in float32, as on tensor cores
        queries_gradient += gradient.float() @ rows.float()
        centres_gradient[block] = gradient.float().t() @ queries.float()
        if bias_gradient is not None:
            bias_gradient[block] = gradient.float().sum(0)
    if inputs.normalise:
        triton_blocks.through_normalisation_(centres_gradient, centres, lengths)
    return Result(loss.detach(), negative_lse, greatest, queries_gradient, centres_gradient, bias_gradient)


def differences(found: Result, expected: Result) -> dict[str, float]:
    """Relative error of each part: the difference's length over the expected one's; infinities must be equal."""
    errors = {}
    for name in ("loss", "negative_lse", "negative_max", "queries", "centres", "bias"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        if theirs is None:
            continue
        ours, theirs = ours.double(), theirs.double()
        is_infinite = theirs == -torch.inf
        assert torch.equal(ours == -torch.inf, is_infinite), name
        ours, theirs = ours[~is_infinite], theirs[~is_infinite]
        errors[name] = float((ours - theirs).norm() / theirs.norm().clamp(min=1e-30)) if theirs.any() else 0.0
        assert theirs.any() or not ours.any(), name
    return errors


def _infinite(values: Tensor) -> Tensor:
    return values.masked_fill(values < -1e299, -torch.inf)
