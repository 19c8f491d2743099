"""What a head is, and how a configuration becomes one.

A head turns embeddings and labels into the training loss. What it gathers from other ranks and how it splits its
parameters over them is its own affair; the trainer knows only this page.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor, nn

from pipeline.config.schema import MarginSoftmaxConfig

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


class Head(nn.Module):
    """Base of all heads. Construction and `forward` are collective on all ranks."""

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        sample_ids: Tensor,
        valid: Tensor,
        step: int,
        *,
        num_valid: Tensor | None = None,
    ) -> HeadOutput:
        """Compute the loss of the batch that all ranks hold together.

        After `loss.backward()` the embeddings' gradient is that of the global loss times the number of ranks, because
        the engine averages the backbone's gradient over ranks. The head's own parameters get the gradient of the
        global loss itself: nobody averages them.

        Args:
            embeddings: [B, D], of any floating type, B equal on all ranks, not normalised.
            labels: [B] int64.
            sample_ids: [B] int64, what an error names and what a sample's random draws are keyed by.
            valid: [B] bool; slots that are False count for nothing, whatever they hold, NaN included.
            step: optimizer updates done so far.
            num_valid: scalar, valid slots of the whole global batch where it comes in several calls, so that the
                calls' losses add up to its mean; None: the valid slots of this call.

        Raises:
            UserError: a valid slot's label is no class; on all ranks.
        """
        raise NotImplementedError

    def sharded_parameters(self) -> dict[str, tuple[nn.Parameter, int]]:
        """Parameters of which a rank holds the rows that `dist.partition` gives it: name to (parameter, global rows).

        The names are those of `named_parameters`. All other parameters and buffers are the same on all ranks.
        """
        raise NotImplementedError


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


def build_head(config: MarginSoftmaxConfig, num_classes: int, embedding_dim: int, seed: int) -> Head:
    """Build the head that a configuration names. Collective on all ranks: each gets its part of the classes.

    Initial values are a function of `seed` alone, whatever the number of ranks.
    """
    import pipeline.model.partial_fc  # noqa: F401  registers its builder; it imports this module, so not at the top

    return _builders[config.kind](config, num_classes, embedding_dim, seed)
