"""Any torchvision classifier as a backbone: a neck takes the place of its last layer."""

from __future__ import annotations

import difflib
import inspect
from typing import Any

import torch
from torch import nn

from pipeline.config.backbones import TorchvisionConfig
from pipeline.config.errors import UserError
from pipeline.model.backbones.crop_check import features_of_crop
from pipeline.model.backbones.neck import Neck

NUM_CLASSES = 1000  # what torchvision's classifiers are built with unless told otherwise


def torchvision_embedder(config: TorchvisionConfig, crop_px: int) -> nn.Module:
    """Build `torchvision.models.NAME` without pretrained weights and replace its classification layer.

    Raises:
        UserError: no such classifier, one whose minimum size is above `crop_px`, or one that cannot have the neck.
    """
    import torchvision  # brings the compiler along, which takes longer than the networks

    name = config.name
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
    if name.startswith("regnet_"):  # computes its widths with tensors, which on the meta device have no values
        with torch.device("cpu"):
            network = builder(**options)
        network.to(torch.get_default_device())
    else:
        network = builder(**options)
    _replace_classifier(network, config)
    features_of_crop(network, name, crop_px)
    return network


def _replace_classifier(network: nn.Module, config: TorchvisionConfig) -> None:
    for path, layer in reversed(list(network.named_modules())):
        owner = network.get_submodule(path.rpartition(".")[0])
        attribute = path.rpartition(".")[2]
        if isinstance(layer, nn.Linear) and layer.out_features == NUM_CLASSES:
            if config.neck == "linear":  # bears torchvision's own name
                setattr(owner, attribute, nn.Linear(layer.in_features, config.embedding_dim))
            else:
                neck = Neck(config.neck, layer.in_features, (), config.embedding_dim, config.dropout)
                setattr(owner, attribute, neck)
            return
        if isinstance(layer, nn.Conv2d) and layer.out_channels == NUM_CLASSES:
            if config.neck != "linear":
                raise UserError("backbone.neck", f"{config.name!r} ends in a convolution", "linear")
            setattr(owner, attribute, nn.Conv2d(layer.in_channels, config.embedding_dim, layer.kernel_size))  # type: ignore[arg-type]
            return
    raise UserError("backbone.name", f"{config.name!r} has no classification layer to replace", "a classifier")
