"""From a configuration section to a network, with what stands in front of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pipeline.config.backbones import (
    BackboneConfig,
    InceptionResNetV1Config,
    IResNetConfig,
    MobileFaceNetConfig,
    SphereFaceConfig,
    TimmConfig,
    TorchvisionConfig,
    ViTConfig,
)
from pipeline.model.backbones.crop_check import check_least, check_multiple
from pipeline.model.backbones.inception_resnet_v1 import MIN_CROP_PX, InceptionResNetV1
from pipeline.model.backbones.iresnet import IResNet
from pipeline.model.backbones.mobilefacenet import MobileFaceNet
from pipeline.model.backbones.spatial_transformer import SpatialTransformer
from pipeline.model.backbones.sphereface import SphereFace20
from pipeline.model.backbones.timm_net import TimmNetwork
from pipeline.model.backbones.torchvision_net import torchvision_embedder
from pipeline.model.backbones.vit import VisionTransformer

NETWORK_PREFIX = "backbone."
"""Before the names of a `FaceModel`'s tensors that are the network's own."""


class FaceModel(nn.Module):
    """A backbone with its normalisation inside, so that every user of a checkpoint feeds it plain pixels.

    Input: images [B, 3, H, W] uint8 RGB. Output: embeddings [B, D] float32, not normalised.
    """

    def __init__(self, backbone: nn.Module, alignment: SpatialTransformer | None = None) -> None:
        super().__init__()
        self.alignment = alignment
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        # (x / 255 − 0.5) / 0.5, the normalisation of InsightFace's models
        pixels = images.to(torch.float32).sub(127.5).div(127.5)
        if self.alignment is not None:
            pixels = self.alignment(pixels)
        return self.backbone(pixels).float()


def build_backbone(config: BackboneConfig, crop_px: int, seed: int) -> FaceModel:
    """Build a backbone for square crops; the initial weights are a function of `seed` alone, the same on every rank.

    Raises:
        UserError: an unknown torchvision or timm model, or a crop size that the network cannot take.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _network(config, crop_px)
        # last, so that the network begins the same with and without it
        alignment = None if config.alignment is None else SpatialTransformer(config.alignment)
        return FaceModel(network, alignment)


def build_without_memory(config: BackboneConfig, crop_px: int) -> FaceModel:
    """The same network on the meta device: names, shapes and structure, no values.

    Raises:
        UserError: as `build_backbone`.
    """
    with torch.device("meta"), _NoInitialValues():
        return build_backbone(config, crop_px, seed=0)


class _NoInitialValues(TorchFunctionMode):
    """Leaves `torch.nn.init` out: on the meta device it computes nothing, and loads torch's compiler to do so."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__module__", None) == nn.init.__name__:
            return kwargs["tensor"] if kwargs and "tensor" in kwargs else args[0]
        return func(*args, **(kwargs or {}))


def _network(config: BackboneConfig, crop_px: int) -> nn.Module:
    if isinstance(config, IResNetConfig):
        check_multiple(crop_px, 16, config.kind)
        return IResNet(config, crop_px)
    if isinstance(config, MobileFaceNetConfig):
        check_multiple(crop_px, 16, config.kind)
        return MobileFaceNet(config.width, config.embedding_dim, crop_px)
    if isinstance(config, SphereFaceConfig):
        check_multiple(crop_px, 16, config.kind)
        return SphereFace20(config, crop_px)
    if isinstance(config, InceptionResNetV1Config):
        check_least(crop_px, MIN_CROP_PX, config.kind)
        return InceptionResNetV1(config)
    if isinstance(config, ViTConfig):
        check_least(crop_px, config.patch_px, f"{config.kind} with patches of {config.patch_px} px")
        return VisionTransformer(config, crop_px)
    if isinstance(config, TorchvisionConfig):
        return torchvision_embedder(config, crop_px)
    if isinstance(config, TimmConfig):
        return TimmNetwork(config, crop_px)
    raise AssertionError(f"no builder for {type(config).__name__}")
