"""Margins: what becomes of the target's logit, and what else tells one margin softmax from another.

A margin sees vectors over the global batch, never the classes, so it is ordinary autograd code. The head does the rest:
it forms `scale · cosine` for all classes, block by block, and hands the margin the target's cosine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.config.margins import MarginConfig

MIN_SINE_IN_DERIVATIVE = 1e-3
"""Floor of sin θ where it divides: the derivative of the angle is infinite at c = ±1."""

NegativeTransform = Callable[[Tensor], Tensor]
"""Elementwise map of a block of non-target logits [N, n]; its derivative is taken by autograd, block by block."""

_MarginT = TypeVar("_MarginT", bound="type[Margin]")
_margins: dict[str, type[Margin]] = {}


class Margin(nn.Module):
    """Base of all margins. N is the global batch; all ranks call all methods with the same values.

    A margin may hold buffers (running statistics, a scale that moves): they must change in the same way on all
    ranks, and go into checkpoints.
    """

    is_cosine = True
    """Whether embeddings and class centres are normalised; otherwise similarities are W·x + b."""

    def logit_scale(self, norm: Tensor) -> Tensor | float:
        """Factor from similarities to logits, a number or [N]. `norm`: [N], the embeddings' lengths."""
        raise NotImplementedError

    def target_logit(self, similarity: Tensor, norm: Tensor, sample_ids: Tensor, step: int) -> Tensor:
        """The target's logit, margin included.

        Args:
            similarity: [N], the target's cosine; rounding may leave it a little outside [−1, 1].
            norm: [N], the embeddings' lengths.
            sample_ids: [N] int64, keys of random draws.
            step: optimizer updates done so far.

        Returns:
            [N], on the scale of the other classes' logits.
        """
        return self.logit_scale(norm) * similarity

    def negative_transform(
        self, similarity: Tensor, norm: Tensor, valid: Tensor, step: int
    ) -> NegativeTransform | None:
        """What to do to the other classes' logits, decided once a call; None: nothing.

        `similarity` [N] is the target's cosine, without a graph; `norm` and `valid` are [N].
        """
        return None

    def sample_loss(self, target_logit: Tensor, negative_lse: Tensor, norm: Tensor) -> Tensor:
        """Each sample's loss [N]: cross-entropy, −log(exp(z_y) / (exp(z_y) + Σ_{j≠y} exp(z_j))).

        `negative_lse` [N] is log Σ_{j≠y} exp(z_j), −inf where there is a single class. As a softplus it neither
        saturates for hopeless samples nor loses the digits of easy ones.
        """
        # softplus(x) becomes x at its threshold; at the default of 20 that would cost float64 half of its digits
        return functional.softplus(negative_lse - target_logit, threshold=40)

    def metrics(self, similarity: Tensor) -> dict[str, Tensor]:
        """More figures to report, each [N]; `similarity` [N] is the target's cosine, without a graph."""
        return {}


def register_margin(name: str) -> Callable[[_MarginT], _MarginT]:
    """Make `build_margin` use the decorated class for configurations of this kind.

    Raises:
        ValueError: the name is taken.
    """

    def register(margin: _MarginT) -> _MarginT:
        if name in _margins:
            raise ValueError(f"a margin named {name!r} is registered already")
        _margins[name] = margin
        return margin

    return register


def build_margin(config: MarginConfig) -> Margin:
    """Build the margin that a configuration names; the section's other keys are its arguments."""
    arguments = config.model_dump()
    return _margins[arguments.pop("kind")](**arguments)


def sine(cosine: Tensor) -> Tensor:
    """sin θ ≥ 0 from cos θ, of any shape: exact values, and a finite derivative −c / max(√(1 − c²), 1e-3)."""
    return cast(Tensor, _Sine.apply(cosine))


class _Sine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, cosine: Tensor) -> Tensor:
        # not 1 − c², which has lost its digits by the time c is near ±1
        value = ((1 - cosine) * (1 + cosine)).clamp_(min=0).sqrt_()
        ctx.save_for_backward(cosine, value)
        return value

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        cosine, value = ctx.saved_tensors
        return -gradients[0] * cosine / value.clamp(min=MIN_SINE_IN_DERIVATIVE)
