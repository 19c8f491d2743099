"""What a margin is: what becomes of the target's logit, and what else tells one margin softmax from another.

A margin sees vectors over the global batch, never the classes, so it is ordinary autograd code. The head does the rest:
it forms `scale · cosine` for all classes, block by block, and hands the margin the target's cosine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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


@dataclass(frozen=True)
class GlobalBatch:
    """What a margin may know of the global batch beside the targets' similarities; N slots, the same on all ranks."""

    norm: Tensor
    """[N], the embeddings' lengths, with a graph."""
    sample_ids: Tensor
    """[N] int64."""
    valid: Tensor
    """[N] bool; a masked slot's other values are finite and mean nothing."""
    step: int
    """Optimizer updates done so far."""
    seed: int
    """Of random draws, together with sample_ids and step."""
    centre_norm: Tensor | None = None
    """[N], the length of each target's class centre, with a graph, where `Margin.needs_centre_norm`."""


class Margin(nn.Module):
    """Base of all margins. N is the global batch; all ranks call all methods with the same values.

    Buffers (running statistics, a scale that moves) must change in the same way on all ranks; they go into
    checkpoints. Parameters are replicated, see `pipeline.model.head.Head`.
    """

    is_cosine = True
    """Whether embeddings and class centres are normalised; otherwise similarities are W·x, or W·x + b."""
    has_bias = False
    """Whether classes have a bias b; only where nothing is normalised."""
    needs_centre_norm = False
    """Whether `GlobalBatch.centre_norm` is wanted."""
    needs_whole_batch = False
    """Whether it computes with statistics over the batch, so that all of it must come at once."""
    has_statistics = False
    """Whether `observe` or `observe_classes` does anything."""
    needs_class_pass = False
    """Whether `observe_classes` is wanted, at the price of one more pass over the classes."""
    sums_softplus = False
    """Whether negatives are reduced to Σ log(1 + exp(z)) instead of log Σ exp(z)."""

    def logit_scale(self, norm: Tensor) -> Tensor | float:
        """Factor from similarities to logits, a number or [N]. `norm`: [N], the embeddings' lengths."""
        raise NotImplementedError

    def observe(self, similarity: Tensor, batch: GlobalBatch) -> None:
        """Move statistics by a batch, before anything else is computed from it; training mode only.

        `similarity` [N] is the target's, without a graph. At least one slot is valid.
        """

    def observe_classes(self, similarity: Tensor, negative_lse: Tensor, sample_rate: float, batch: GlobalBatch) -> None:
        """As `observe`, with the negatives' log-sum-exp [N] at the scale that was valid until now, and the share of
        the negatives that it was taken over. Only where `needs_class_pass`."""

    def target_logit(self, similarity: Tensor, batch: GlobalBatch) -> Tensor:
        """The target's logit [N], margin included, on the scale of the other classes' logits.

        `similarity` [N]: the target's, with a graph; rounding may leave a cosine a little outside [−1, 1].
        """
        return self.logit_scale(batch.norm) * similarity

    def negative_transform(self, similarity: Tensor, batch: GlobalBatch) -> NegativeTransform | None:
        """What to do to the other classes' logits, decided once a call; None: nothing.

        `similarity` [N] is the target's, without a graph.
        """
        return None

    def negative_bias(self) -> Tensor | None:
        """A scalar, with a graph, to add to the other classes' logits; None: nothing."""
        return None

    def sample_loss(self, target_logit: Tensor, reduced: Tensor, batch: GlobalBatch) -> Tensor:
        """Each sample's loss [N]: cross-entropy, −log(exp(z_y) / (exp(z_y) + Σ_{j≠y} exp(z_j))).

        `reduced` [N] is the walk's reduction of the negatives, log Σ_{j≠y} exp(z_j) unless `sums_softplus`; −inf where
        there is a single class. As a softplus it neither saturates for hopeless samples nor loses the digits of easy
        ones.
        """
        # softplus(x) becomes x at its threshold; at the default of 20 that would cost float64 half of its digits
        return functional.softplus(reduced - target_logit, threshold=40)

    def metrics(self, similarity: Tensor, batch: GlobalBatch) -> dict[str, Tensor]:
        """More figures to report, each [N] or a scalar; `similarity` [N] is the target's, without a graph."""
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


def build_margin(config: MarginConfig, num_classes: int) -> Margin:
    """Build the margin that a configuration names; the section's other keys are its arguments.

    Margins whose defaults follow from the number of classes take it as `num_classes`.
    """
    arguments = config.model_dump()
    margin = _margins[arguments.pop("kind")]
    if getattr(margin, "takes_num_classes", False):
        arguments["num_classes"] = num_classes
    return margin(**arguments)


def sine(cosine: Tensor) -> Tensor:
    """sin θ ≥ 0 from cos θ, of any shape: exact values, and a finite derivative −c / max(√(1 − c²), 1e-3)."""
    return cast(Tensor, _Sine.apply(cosine))


def angle(cosine: Tensor) -> Tensor:
    """θ in [0, π] from cos θ, of any shape: exact values, and a finite derivative −1 / max(√(1 − c²), 1e-3)."""
    return cast(Tensor, _Angle.apply(cosine))


class _Sine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, cosine: Tensor) -> Tensor:
        value = _sine(cosine)
        ctx.save_for_backward(cosine, value)
        return value

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        cosine, value = ctx.saved_tensors
        return -gradients[0] * cosine / value.clamp(min=MIN_SINE_IN_DERIVATIVE)


class _Angle(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, cosine: Tensor) -> Tensor:
        value = _sine(cosine)
        ctx.save_for_backward(value)
        # acos has lost its digits near ±1
        return torch.atan2(value, cosine)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (value,) = ctx.saved_tensors
        return -gradients[0] / value.clamp(min=MIN_SINE_IN_DERIVATIVE)


def _sine(cosine: Tensor) -> Tensor:
    # not 1 − c², which has lost its digits by the time c is near ±1
    return ((1 - cosine) * (1 + cosine)).clamp_(min=0).sqrt_()
