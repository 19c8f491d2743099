"""What the trainer asks of whatever replicates the backbone."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor, nn


class Backend(Protocol):
    """Owner of the backbone, its optimizer and the averaging of its gradients over ranks."""

    model: nn.Module
    """The bare network, whose `state_dict` names go into checkpoints."""

    def forward(self, images: Tensor) -> Tensor:
        """Embed a micro-batch: uint8 [B, 3, H, W] to float32 [B, D]."""
        ...

    def accumulate(self, is_last: bool) -> AbstractContextManager[None]:
        """Wrap a micro-batch's forward and backward; gradients are averaged over ranks in the last one only."""
        ...

    def gradient_norm(self) -> Tensor:
        """L2 norm of the averaged gradient, the same on all ranks."""
        ...

    def step(self, lr: float, norm: Tensor, max_norm: float | None) -> None:
        """Clip, update the parameters, clear the gradients."""
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
        """The optimizer's state as live tensors under `parameter-name/slot`."""
        ...

    def prime_optimizer(self) -> None:
        """Lay out the optimizer's state without moving a parameter."""
        ...
