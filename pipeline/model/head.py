"""What a head is, and how a configuration becomes one.

A head turns embeddings and labels into the training loss. What it gathers from other ranks and how it splits its
parameters over them is its own affair; the trainer knows only this page.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor, nn

from pipeline.config.heads import HeadConfig
from pipeline.model.teacher import Teacher

HeadBuilder = Callable[[Any, int, int, int], "Head"]
"""(configuration section, num_classes, embedding_dim, seed) to a head."""

_BuilderT = TypeVar("_BuilderT", bound=HeadBuilder)
_builders: dict[str, HeadBuilder] = {}


@dataclass(frozen=True)
class HeadOutput:
    """What a head gives for one call, the same on all ranks."""

    loss: Tensor
    """Scalar: the mean over the valid slots of all ranks."""
    metrics: dict[str, Tensor]
    """Detached, finite scalars: means over the valid slots of all ranks, 0 when there is none."""


@dataclass(frozen=True)
class ActiveRows:
    """The rows of a sharded parameter that a step trains, where it does not train all of them."""

    rows: Tensor
    """[m] int64, ascending, counted from the first row of this rank's partition."""
    leaf: nn.Parameter
    """What took part in the computation and collects the gradient: the parameter itself, or a copy of some rows."""
    within: Tensor | None
    """[m] int64, where `rows` stand in `leaf`; None: they are its rows in order."""

    def gradient(self) -> Tensor | None:
        """Gradient [m, ...] of the rows, None without a backward pass. It may be changed in place."""
        if self.leaf.grad is None or self.within is None:
            return self.leaf.grad
        return self.leaf.grad[self.within]


class Head(nn.Module):
    """Base of all heads. Construction, `begin_step` and `forward` are collective on all ranks.

    Parameters are of three kinds. Sharded ones (`sharded_tensors`): a rank has its rows and gets their exact gradient.
    Row-sparse ones (`row_sparse`): sharded, and a step moves `active_rows` only. All others are replicated: every rank
    has them and computes a gradient, whose mean over ranks is the exact one; the engine averages it.
    Buffers are replicated unless they are in `sharded_tensors`, and go into checkpoints.

    A step that gives a parameter no gradient leaves it, its momentum and the rest of its optimizer's state as they are.
    """

    needs_whole_batch: bool = False
    """The loss is no sum over micro-batches: the engine calls `forward` once a step, with the whole global batch."""
    needs_teacher: bool = False
    """`forward` wants `teacher_embeddings`; like `needs_whole_batch`, asked after each `begin_step`."""

    def attach_teacher(self, teacher: Teacher) -> None:
        """Hear about the frozen teacher, once, before an optimizer is built. Called where `needs_teacher`.

        Parameters whose shape depends on the teacher are made here.

        Raises:
            UserError: the teacher does not fit.
        """
        raise NotImplementedError

    def begin_step(self, labels: Tensor, valid: Tensor, step: int, epoch: float) -> None:
        """Hear what a step will bring, before any call of `forward` for it. Collective on all ranks.

        Args:
            labels: [M] int64, of all slots that this rank will pass to `forward` in this step; M equal on all ranks.
            valid: [M] bool.
            step: optimizer updates done so far.
            epoch: passes over the data done so far, what schedules go by.
        """

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
        """Compute the loss of the batch that all ranks hold together.

        After `loss.backward()` the embeddings' gradient is that of the global loss times the number of ranks, because
        the engine averages the backbone's gradient over ranks.

        Args:
            embeddings: [B, D], of any floating type, B equal on all ranks, not normalised.
            labels: [B] int64.
            sample_ids: [B] int64, what an error names and what a sample's random draws are keyed by.
            valid: [B] bool; slots that are False count for nothing, whatever they hold, NaN included.
            step: optimizer updates done so far.
            num_valid: scalar, valid slots of the whole global batch where it comes in several calls, so that the
                calls' losses add up to its mean; None: the valid slots of this call.
            teacher_embeddings: [B, D'], the frozen teacher's for the same crops, where `needs_teacher`.

        Raises:
            UserError: a valid slot's label is no class; on all ranks.
        """
        raise NotImplementedError

    def sharded_tensors(self) -> dict[str, tuple[Tensor, int]]:
        """Parameters and buffers of which a rank holds the rows that `dist.partition` gives it.

        Returns:
            Name, as in `named_parameters` or `named_buffers`, to (tensor [rows, ...], number of rows of all ranks).
        """
        return {}

    def row_sparse(self) -> frozenset[str]:
        """Names of the sharded parameters of which a step trains `active_rows` only: the others do not move at all."""
        return frozenset()

    def active_rows(self) -> dict[str, ActiveRows]:
        """What the step begun last trains, by names of `row_sparse`; of a name that is missing, nothing."""
        return {}


def register_head(kind: str) -> Callable[[_BuilderT], _BuilderT]:
    """Make `build_head` use the decorated builder for configurations of this kind.

    Raises:
        ValueError: the kind is taken.
    """

    def register(builder: _BuilderT) -> _BuilderT:
        if kind in _builders:
            raise ValueError(f"a head of kind {kind!r} is registered already")
        _builders[kind] = builder
        return builder

    return register


def build_head(config: HeadConfig, num_classes: int, embedding_dim: int, seed: int) -> Head:
    """Build the head that a configuration names. Collective on all ranks: each gets its part of the classes.

    Initial values are a function of `seed` alone, whatever the number of ranks.
    """
    # these register their builders; they import this module, so not at the top
    import pipeline.model.centre
    import pipeline.model.distillation
    import pipeline.model.harmonic
    import pipeline.model.head_sum
    import pipeline.model.metric.contrastive
    import pipeline.model.metric.margin_based
    import pipeline.model.metric.multi_similarity
    import pipeline.model.metric.n_pair
    import pipeline.model.metric.triplet
    import pipeline.model.partial_fc  # noqa: F401

    return _builders[config.kind](config, num_classes, embedding_dim, seed)
