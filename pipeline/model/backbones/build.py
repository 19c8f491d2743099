"""From a configuration section to a network, and the normalisation in front of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.config.errors import UserError
from pipeline.config.schema import BackboneConfig, IResNetConfig, MobileFaceNetConfig, TorchvisionConfig
from pipeline.model.backbones.iresnet import IResNet
from pipeline.model.backbones.mobilefacenet import MobileFaceNet
from pipeline.model.backbones.torchvision_net import torchvision_embedder


class FaceModel(nn.Module):
    """A backbone with its normalisation inside, so that every user of a checkpoint feeds it plain pixels.

    Input: images [B, 3, H, W] uint8 RGB. Output: embeddings [B, D] float32, not normalised.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        # (x / 255 − 0.5) / 0.5, the normalisation of InsightFace's models
        pixels = images.to(torch.float32).sub(127.5).div(127.5)
        # Not in channels-last: with it, the backward pass of a strided 1×1 convolution corrupts the heap on CPUs (torch
        # 2.14, e.g. batch 3, 8 channels, 64 px), and such convolutions are the shortcuts of all residual networks.
        return self.backbone(pixels).float()


def build_backbone(config: BackboneConfig, crop_px: int, seed: int) -> FaceModel:
    """Build a backbone for square crops; the initial weights are a function of `seed` alone, the same on every rank.

    Raises:
        UserError: an unknown torchvision model, or a crop size that the network cannot take.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if isinstance(config, IResNetConfig):
            _check_multiple_of_16(crop_px, config.kind)
            network: nn.Module = IResNet(config.depth, config.width, config.embedding_dim, crop_px, config.dropout)
        elif isinstance(config, MobileFaceNetConfig):
            _check_multiple_of_16(crop_px, config.kind)
            network = MobileFaceNet(config.width, config.embedding_dim, crop_px)
        elif isinstance(config, TorchvisionConfig):
            network = torchvision_embedder(config.name, config.embedding_dim, crop_px)
        else:
            raise AssertionError(f"no builder for {type(config).__name__}")
        return FaceModel(network)


def _check_multiple_of_16(crop_px: int, kind: str) -> None:
    if crop_px % 16:
        raise UserError(
            "backbone.kind",
            f"{kind} cannot take crops of {crop_px} px",
            "a multiple of 16",
            f"make the data set with --size {crop_px // 16 * 16 + 16}, or choose a torchvision backbone",
        )
