"""The backbone under DistributedDataParallel, or bare in a single process."""

from __future__ import annotations

import inspect
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline import dist
from pipeline.config.engine import Precision
from pipeline.config.optim import OptimizerConfig
from pipeline.engine import optim
from pipeline.engine.loss_scale import LossScale
from pipeline.engine.network import Network


class DDPBackend:
    """Replicates `model` on all ranks and averages its gradients; see `Backend` for the methods.

    Construction is collective: DDP broadcasts rank 0's parameters. Buffers are not broadcast, `RunningStatistics`
    keeps them equal.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerConfig,
        precision: Precision,
        device: torch.device,
        compiles: bool = False,
    ) -> None:
        # as the images are laid out: DDP warns of gradients whose layout is not that of their weights, and copies them
        self.model = model.to(device).to(memory_format=torch.channels_last)
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._optimizer = optim.build_optimizer(optimizer, self._parameters)
        self.loss_scale = LossScale() if precision == "fp16" else None
        self._network = Network(self.model, precision, device, compiles)
        self._device = device
        self._wrapped: nn.Module = self._network
        self._wrap()

    def _wrap(self) -> None:
        """Average the gradients of what is trained now. Collective on all ranks."""
        self._wrapped = self._network  # the old wrapper takes its hooks along before the new one sets its own
        if dist.world_size() > 1 and self._trains:
            device_ids = [self._device.index] if self._device.type == "cuda" else None
            # torch 2.14 renamed the option and warns at the old name; older ones have only that
            known = inspect.signature(DistributedDataParallel.__init__).parameters
            name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
            no_buffers: dict[str, Any] = {name: False}
            self._wrapped = DistributedDataParallel(
                self._network, device_ids=device_ids, gradient_as_bucket_view=True, **no_buffers
            )

    def forward(self, images: Tensor) -> Tensor:
        embeddings: Tensor = self._wrapped(images)
        # the head differentiates by them even where nothing behind them is trained
        return embeddings if self._trains or not torch.is_grad_enabled() else embeddings.requires_grad_()

    def backward(self, embeddings: Tensor, gradient: Tensor) -> None:
        if self.loss_scale is not None:
            gradient = gradient * self.loss_scale.value
        with self._network.products():
            embeddings.backward(gradient)

    def accumulate(self, is_last: bool) -> AbstractContextManager[None]:
        if isinstance(self._wrapped, DistributedDataParallel) and not is_last:
            return self._wrapped.no_sync()
        return nullcontext()

    def gradient_norm(self) -> Tensor:
        if self.loss_scale is not None:
            gradients = [p.grad for p in self._parameters.values() if p.grad is not None]
            self.loss_scale.unscale(gradients)
        return optim.gradient_norm(self._parameters.values(), sharded=False)

    def step(self, lr: float, norm: Tensor, max_norm: float | None) -> None:
        optim.scale_gradients(self._parameters.values(), norm, max_norm)
        optim.set_lr(self._optimizer, lr)
        self._optimizer.step()
        self.zero_grad()

    def zero_grad(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)

    def freeze(self, names: frozenset[str]) -> None:
        for name, parameter in self._parameters.items():
            parameter.requires_grad_(name not in names)
            parameter.grad = None
        self._wrap()

    @property
    def _trains(self) -> bool:
        return any(p.requires_grad for p in self._parameters.values())

    def optimizer_tensors(self) -> dict[str, Tensor]:
        return optim.optimizer_tensors(self._optimizer, self._parameters)

    def prime_optimizer(self) -> None:
        optim.prime_optimizer(self._optimizer)

    def adopt_loaded(self, optimizer_tensors: dict[str, Tensor]) -> None:
        """Nothing to do: they are live."""
