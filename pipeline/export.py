"""Models that leave the house: their weights without a pickle, with what one needs to know to use them."""

from __future__ import annotations

import json
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from pipeline.atomic_write import write_atomically
from pipeline.checkpoint import (
    HEAD_PREFIX,
    LoadedBackbone,
    Weights,
    find_checkpoint,
    load_backbone,
    read_info,
    read_tensors,
    stored_shapes,
)
from pipeline.config.errors import UserError

CENTRES = "class_centres"


def export_backbone(run: Path, output: Path, weights: Weights | None = None) -> LoadedBackbone:
    """Write a backbone's tensors as safetensors, under the names of its network.

    The metadata says what it takes: crop size, template and pixel values, embedding length, the backbone's
    configuration, and what it was trained on. `init_from` of a recipe reads such a file.

    Args:
        run: a run directory or a checkpoint.
        output: the file.
        weights: the moving average or the raw ones; None: the average where there is one.

    Raises:
        UserError: no such checkpoint, or the file cannot be written.
    """
    loaded = load_backbone(run, torch.device("cpu"), weights)
    crop = loaded.dataset["crop"]
    described = {
        "format": "pt",
        "input": json.dumps({"pixels": "uint8 RGB", "size_px": loaded.crop_px, "template": crop["template"]}),
        "embedding_dim": str(loaded.embedding_dim),
        "backbone": json.dumps(loaded.config["backbone"]),
        "weights": loaded.weights,
        "step": str(loaded.step),
        "samples": str(loaded.num_samples),
        "trained_on": json.dumps(loaded.trained_on),
    }
    _write(output, loaded.module.state_dict(), described)
    return loaded


def export_centres(run: Path, output: Path) -> tuple[int, ...]:
    """Write the class centres, as they were trained, and give their shape: [C, D], or [C, K, D] with sub-centres.

    Row i belongs to label i of the split that was trained on, whose label map's hash stands in the metadata. Where
    several heads have centres, each stands under its own name.

    Raises:
        UserError: no such checkpoint, it has no class centres, or the file cannot be written.
    """
    path = find_checkpoint(run)
    info = read_info(path)
    names = [name for name in stored_shapes(path) if name.startswith(HEAD_PREFIX) and name.endswith(CENTRES)]
    if not names:
        raise UserError(path, "its head has no class centres", "a margin softmax", "leave --centres out")
    named = {name.removeprefix(HEAD_PREFIX): tensor for name, tensor in read_tensors(path, names).items()}
    described = {"format": "pt", "label_map_sha256": info.label_map_sha256, "num_classes": str(info.num_classes)}
    _write(output, named, described)
    return tuple(next(iter(named.values())).shape)


def _write(output: Path, tensors: dict[str, Tensor], described: dict[str, str]) -> None:
    content = safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()}, described)
    try:
        write_atomically(output, content)
    except OSError as error:
        raise UserError(output, f"cannot be written ({error})") from None
