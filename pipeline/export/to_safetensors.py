"""Weights without a pickle, under the names of the network."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from pipeline.checkpoint import HEAD_PREFIX, read_info, read_tensors, stored_shapes
from pipeline.config.errors import UserError
from pipeline.export.description import Description

CENTRES = "class_centres"


def backbone_bytes(model: nn.Module, description: Description) -> bytes:
    """The safetensors file of a backbone: its tensors bit for bit. `init_from` of a recipe reads it."""
    return _serialise(model.state_dict(), description.metadata())


def centres_bytes(checkpoint: Path, description: Description) -> tuple[bytes, tuple[int, ...]]:
    """The safetensors file of the class centres as they were trained, and their shape: [C, D], or [C, K, D] with
    sub-centres.

    Row i belongs to label i of the split that was trained on, whose label map's hash stands in the metadata. Where
    several heads have centres, each stands under its own name.

    Args:
        checkpoint: one checkpoint, `step-N`.
        description: of its backbone; what concerns the backbone alone is left out.

    Raises:
        UserError: a damaged checkpoint, or one without class centres.
    """
    info = read_info(checkpoint)
    names = [name for name in stored_shapes(checkpoint) if name.startswith(HEAD_PREFIX) and name.endswith(CENTRES)]
    if not names:
        raise UserError(checkpoint, "its head has no class centres", "a margin softmax", "leave --centres out")
    named = {name.removeprefix(HEAD_PREFIX): tensor for name, tensor in read_tensors(checkpoint, names).items()}
    described = {
        key: value for key, value in description.metadata().items() if not key.endswith((".input", ".weights"))
    } | {"label_map_sha256": info.label_map_sha256, "num_classes": str(info.num_classes)}
    return _serialise(named, described), tuple(next(iter(named.values())).shape)


def require_same_tensors(content: bytes, model: nn.Module, where: Path) -> None:
    """Read a backbone's file back.

    Raises:
        UserError: a tensor differs from the model's.
    """
    stored = safetensors.torch.load(content)
    wanted = model.state_dict()
    if stored.keys() != wanted.keys() or any(not torch.equal(stored[name], wanted[name]) for name in wanted):
        raise UserError(where, "its tensors differ from the model's", "the same", "nothing was written")


def _serialise(tensors: dict[str, Tensor], described: dict[str, str]) -> bytes:
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    return safetensors.torch.save(contiguous, {"format": "pt", **described})
