"""What the trainer asks of whatever replicates the backbone.

All ranks make the same calls. Collective are `backward` in the last micro-batch (in others where the backend says so),
`gradient_norm`, `step`, and, where the optimizer's state is divided among ranks, `optimizer_tensors` and
`adopt_loaded`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor, nn

from pipeline.engine.loss_scale import LossScale


class Backend(Protocol):
    """Owner of the backbone, its optimizer and the averaging of its gradients over ranks."""

    model: nn.Module
    """The bare network, whose `state_dict` names go into checkpoints."""

    loss_scale: LossScale | None
    """In fp16, what keeps small gradients; the trainer asks it whether a step counts. None otherwise."""

    def forward(self, images: Tensor) -> Tensor:
        """Embed a micro-batch: uint8 [B, 3, H, W] to float32 [B, D]."""
        ...

    def accumulate(self, is_last: bool) -> AbstractContextManager[None]:
        """Wrap a micro-batch's forward and backward; gradients are averaged over ranks in the last one only."""
        ...

    def backward(self, embeddings: Tensor, gradient: Tensor) -> None:
        """Backpropagate a micro-batch: what `forward` gave, and the loss's gradient with respect to it, as large."""
        ...

    def gradient_norm(self) -> Tensor:
        """L2 norm of the averaged gradient, a scalar float32, the same on all ranks. To be called once a step."""
        ...

    def step(self, lr: float, norm: Tensor, max_norm: float | None) -> None:
        """Clip the gradient, whose norm is `norm`; update the parameters, clear the gradients."""
        ...

    def zero_grad(self) -> None:
        """Clear the gradients."""
        ...

    def freeze(self, names: frozenset[str]) -> None:
        """From now on train all parameters but these, whose optimizer's state stays too. Collective on all ranks.

        `names` are those of `model.named_parameters()`; `model`'s modes (train, eval) are not touched.
        """
        ...

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """The optimizer's state, whole, under `parameter-name/slot`: the same for all backends, live or copies."""
        ...

    def prime_optimizer(self) -> None:
        """Lay out the optimizer's state without moving a parameter."""
        ...

    def adopt_loaded(self, optimizer_tensors: dict[str, Tensor]) -> None:
        """Go on from what was read into `model` and into what `optimizer_tensors` gave."""
        ...
