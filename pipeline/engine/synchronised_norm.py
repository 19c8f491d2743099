"""Batch norm over the micro-batches that all ranks have at a time, on any device.

PyTorch's own SyncBatchNorm takes CUDA tensors only. A group is a round: the first micro-batches of all ranks, then the
second ones. Its size is the number of ranks, so a run on another number of ranks trains another function.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline import dist


class SynchronisedBatchNorm(_BatchNorm):
    """Batch norm of [B, C, ...] over a round; in eval mode what `nn.BatchNorm2d` is.

    In training mode a forward pass and its backward pass are collective: all ranks make the same calls.
    """

    is_filler = False
    """Whether the micro-batch in work only fills a gap: it is normalised like the round's others, and counts for
    nothing. To be set before a forward pass and left until its backward pass is done."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        assert self.momentum is not None
        output, mean, var, count = cast(
            tuple[Tensor, Tensor, Tensor, Tensor],
            _Normalise.apply(input, self.weight, self.bias, self.eps, not self.is_filler),
        )
        if self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(var * (count / (count - 1)), self.momentum)
        return output

    def _check_input_dim(self, input: Tensor) -> None:
        assert input.ndim >= 2


def synchronise(model: nn.Module) -> None:
    """Turn all batch norms of a model into synchronised ones, in place; parameters, buffers and names stay."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.__class__ = SynchronisedBatchNorm


class _Normalise(torch.autograd.Function):
    """Ioffe and Szegedy 2015 (arXiv:1502.03167), algorithm 1, with sums over all ranks in both directions."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, counts: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Output as x, and of the round: mean [C], biased variance [C], number of values of a channel, a scalar."""
        dims = [0, *range(2, x.ndim)]
        own_var, own_mean = torch.var_mean(_wide(x), dims, correction=0)
        own_count = x.numel() / x.shape[1] if counts else 0.0
        rows = dist.all_gather_rows(torch.cat([own_mean, own_var, own_mean.new_tensor([own_count])])[None])
        means, variances, numbers = rows.split([len(own_mean), len(own_mean), 1], dim=1)
        count = numbers.sum()
        # squares about each rank's own mean, which are small, and not about zero, whose difference loses digits
        mean = (numbers * means).sum(0) / count
        var = (numbers * (variances + (means - mean).square())).sum(0) / count
        inverse_std = (var + eps).rsqrt()
        normalised = (_wide(x) - _channels(mean, x)) * _channels(inverse_std, x)
        ctx.save_for_backward(x, weight, mean, inverse_std, count)
        ctx.counts, ctx.dims = counts, dims
        output = normalised if weight is None else normalised * _channels(weight, x)
        output = output if bias is None else output + _channels(bias, x)
        ctx.mark_non_differentiable(mean, var, count)
        return output.to(x.dtype), mean, var, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse_std, count = ctx.saved_tensors
        gradient = _wide(gradients[0])
        normalised = (_wide(x) - _channels(mean, x)) * _channels(inverse_std, x)
        of_bias, of_weight = gradient.sum(ctx.dims), (gradient * normalised).sum(ctx.dims)
        # the moments stand in the outputs of all ranks
        sums = dist.all_reduce_sum(torch.stack([of_bias, of_weight])) / count
        if ctx.counts:
            gradient = gradient - _channels(sums[0], x) - normalised * _channels(sums[1], x)
        gradient = gradient * _channels(inverse_std if weight is None else inverse_std * weight, x)
        needs_weight, needs_bias = ctx.needs_input_grad[1:3]
        return (
            gradient.to(x.dtype),
            of_weight if needs_weight else None,
            of_bias if needs_bias else None,
            None,
            None,
        )


def _wide(x: Tensor) -> Tensor:
    """Sums are taken in float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _channels(values: Tensor, like: Tensor) -> Tensor:
    """[C] as a factor on [B, C, ...]."""
    return values.view(1, -1, *(1,) * (like.ndim - 2))
