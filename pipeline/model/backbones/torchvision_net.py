"""Any torchvision classifier as a backbone: its last layer becomes a linear embedding."""

from __future__ import annotations

import difflib
import inspect
from typing import Any

import torch
import torchvision
from torch import nn

from pipeline.config.errors import UserError

NUM_CLASSES = 1000  # what torchvision's classifiers are built with unless told otherwise


def torchvision_embedder(name: str, embedding_dim: int, crop_px: int) -> nn.Module:
    """Build `torchvision.models.NAME` without pretrained weights and replace its classification layer.

    Raises:
        UserError: no such classifier, or one whose minimum size is above `crop_px`.
    """
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        remedy = f"did you mean {close[0]!r}?" if close else ""
        raise UserError("backbone.name", f"torchvision has no classifier {name!r}", "e.g. resnet50", remedy)
    builder = torchvision.models.get_model_builder(name)
    options: dict[str, Any] = {"weights": None}
    parameters = inspect.signature(builder).parameters
    if name in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "init_weights": True}
    if name.startswith("vit_") and "kwargs" in parameters:
        options["image_size"] = crop_px
    network = builder(**options)
    _replace_classifier(network, name, embedding_dim)
    _check_crop(network, name, crop_px)
    return network


def _replace_classifier(network: nn.Module, name: str, embedding_dim: int) -> None:
    for path, layer in reversed(list(network.named_modules())):
        owner = network.get_submodule(path.rpartition(".")[0])
        attribute = path.rpartition(".")[2]
        if isinstance(layer, nn.Linear) and layer.out_features == NUM_CLASSES:
            setattr(owner, attribute, nn.Linear(layer.in_features, embedding_dim))
            return
        if isinstance(layer, nn.Conv2d) and layer.out_channels == NUM_CLASSES:
            setattr(owner, attribute, nn.Conv2d(layer.in_channels, embedding_dim, layer.kernel_size))  # type: ignore[arg-type]
            return
    raise UserError("backbone.name", f"{name!r} has no classification layer to replace", "a classifier")


def _check_crop(network: nn.Module, name: str, crop_px: int) -> None:
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad():
            network(torch.zeros(1, 3, crop_px, crop_px))
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = str(error).splitlines()[0][:120]
        raise UserError("backbone.name", f"{name} cannot take crops of {crop_px} px ({reason})") from error
    finally:
        network.train(was_training)
