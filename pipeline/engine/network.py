"""The backbone as an engine calls it: in its arithmetic, compiled or not, with activations kept or computed again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch._inductor.exc import InductorError
from torch.utils.checkpoint import checkpoint

from pipeline.config.engine import Precision
from pipeline.config.errors import UserError

_AUTOCAST_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Network(nn.Module):
    """Calls `model` in the run's arithmetic; engines wrap this, checkpoints hold the bare `model`.

    Input: images [B, 3, H, W] uint8. Output: embeddings [B, D] float32.
    """

    def __init__(self, model: nn.Module, precision: Precision, device: torch.device, compiles: bool) -> None:
        super().__init__()
        self._precision, self._device, self._compiles = precision, device, compiles
        # Masks of dropout are drawn as without compiling: by torch's generator, which is seeded by stream position.
        options: dict[str, Any] = {"fallback_random": True}
        self.model = torch.compile(model, fullgraph=True, dynamic=False, options=options) if compiles else model

    def forward(self, images: Tensor) -> Tensor:
        """Embed a micro-batch.

        Raises:
            UserError: the backbone cannot be compiled.
        """
        lower = _AUTOCAST_TYPES.get(self._precision)
        with self.products(), torch.autocast(self._device.type, dtype=lower, enabled=lower is not None):
            if not self._compiles:
                return self._embed(images)
            try:
                return self._embed(images)
            except (TorchDynamoException, InductorError) as error:
                reason = next(line for line in str(error).splitlines() if line.strip())
                raise UserError(
                    "training.compile", f"torch cannot compile the backbone ({reason})", remedy="set it to false"
                ) from error

    @contextmanager
    def products(self) -> Iterator[None]:
        """Around a forward or backward pass: how a GPU multiplies float32 numbers. The head's stay as they are.

        Said in so many words, because torch's own choice for convolutions is tf32.
        """
        if self._device.type != "cuda":
            yield
            return
        cudnn: Any = torch.backends.cudnn
        matmul, conv = torch.backends.cuda.matmul, cudnn.conv
        before = matmul.fp32_precision, conv.fp32_precision
        wanted = "tf32" if self._precision == "tf32" else "ieee"
        matmul.fp32_precision, conv.fp32_precision = wanted, wanted
        try:
            yield
        finally:
            matmul.fp32_precision, conv.fp32_precision = before

    def _embed(self, images: Tensor) -> Tensor:
        embeddings: Tensor = self.model(images)
        return embeddings


class _Recomputed(nn.Module):
    """Put before a module's own class, it keeps the module's input instead of what its forward pass computes."""

    def forward(self, *inputs: Any) -> Any:
        if not torch.is_grad_enabled():
            return super().forward(*inputs)
        # draws the same dropout masks again; running statistics are put right at the end of a step, whoever moved them
        return checkpoint(super().forward, *inputs, use_reentrant=False)


def recompute_blocks(model: nn.Module) -> int:
    """Make each block of a backbone compute its activations again in the backward pass; gives the number of blocks.

    A block is an element of the outermost sequences of modules that consists of modules itself: the residual blocks of
    a residual network, the layers of a transformer. Parameters and their names stay.

    Raises:
        UserError: there are none.
    """
    blocks = list(_blocks(model))
    for block in blocks:
        kind = type(block)
        block.__class__ = type(kind.__name__, (_Recomputed, kind), {})
    if not blocks:
        raise UserError(
            "training.activation_checkpointing", "this backbone has no blocks to recompute", remedy="set it to false"
        )
    return len(blocks)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    is_sequence = isinstance(module, nn.Sequential | nn.ModuleList)
    for child in module.children():
        if is_sequence and any(True for _ in child.children()):
            yield child
        else:
            yield from _blocks(child)
