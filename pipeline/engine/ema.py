"""A moving average of the backbone's weights, which is often better than the weights it averages.

Polyak and Juditsky 1992, "Acceleration of Stochastic Approximation by Averaging", with the exponential window of
TensorFlow's ExponentialMovingAverage, which FaceNet's code evaluates with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from pipeline import checkpoint
from pipeline.config.optim import EmaConfig


class Ema:
    """Averages of a network's tensors, float32 whatever their type; counters and other integers are copied.

    Nothing here is collective: ranks whose weights are equal have equal averages.

    Args:
        config: see there.
        tensors: the master weights and the buffers by name (`state_dict` of a network in float32). The average begins
            as a copy of them.
    """

    def __init__(self, config: EmaConfig, tensors: Mapping[str, Tensor]) -> None:
        self._config = config
        self._values = {name: _averaged_type(t.detach()).clone() for name, t in tensors.items()}

    def restart(self, tensors: Mapping[str, Tensor]) -> None:
        """Begin anew from these tensors: what a run does whose checkpoint has no average."""
        for name, value in self._values.items():
            value.copy_(tensors[name].detach())

    @torch.no_grad()
    def update(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Take the weights in after optimizer update `step`, where it is one of every `every_steps`."""
        if step % self._config.every_steps:
            return
        averages = {name: value for name, value in self._values.items() if value.is_floating_point()}
        current = [_averaged_type(tensors[name].detach()) for name in averages]
        torch._foreach_lerp_(list(averages.values()), current, 1 - self.decay(step))
        for name, value in self._values.items():
            if name not in averages:
                value.copy_(tensors[name])

    def decay(self, step: int) -> float:
        """Weight of the old average in the update of `step`."""
        if not self._config.warmup:
            return self._config.decay
        num_updates = step // self._config.every_steps
        return min(self._config.decay, (1 + num_updates) / (10 + num_updates))

    @contextmanager
    @torch.no_grad()
    def in_place_of(self, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        """Let the network have the averages while the block runs; afterwards it has what it had, bit for bit.

        `tensors` are the live ones that the averages are of.
        """
        kept = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        for name, tensor in tensors.items():
            tensor.copy_(self._values[name])
        try:
            yield
        finally:
            for name, tensor in tensors.items():
                tensor.copy_(kept[name])

    def tensors(self) -> dict[str, Tensor]:
        """The averages, live, by their names in checkpoints."""
        return {checkpoint.EMA_PREFIX + name: value for name, value in self._values.items()}


def _averaged_type(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor
