"""Small backbones of every kind, for the tests that hold for all of them."""

from __future__ import annotations

import importlib.util

import pytest
from torch import Tensor

from pipeline.config.backbones import (
    BackboneConfig,
    InceptionResNetV1Config,
    IResNetConfig,
    MobileFaceNetConfig,
    SpatialTransformerConfig,
    SphereFaceConfig,
    TimmConfig,
    TorchvisionConfig,
    ViTConfig,
)

DIM = 32
HAS_TIMM = importlib.util.find_spec("timm") is not None

# 0.125 of IResNet's channels are 8: the number with which torch 2.14 corrupts the heap, see iresnet.py
SMALL: dict[str, BackboneConfig] = {
    "iresnet18": IResNetConfig(depth=18, width=0.125, embedding_dim=DIM),
    "iresnet50-linear": IResNetConfig(depth=50, width=0.125, embedding_dim=DIM, neck="linear"),
    "iresnet18-se": IResNetConfig(depth=18, width=0.125, embedding_dim=DIM, se=True, dropout=0.2),
    "iresnet18-aligned": IResNetConfig(
        depth=18, width=0.125, embedding_dim=DIM, alignment=SpatialTransformerConfig(max_change=0.2)
    ),
    "mobilefacenet": MobileFaceNetConfig(width=0.25, embedding_dim=DIM),
    "sphereface20": SphereFaceConfig(width=0.125, embedding_dim=DIM),
    "sphereface20-bn": SphereFaceConfig(width=0.125, embedding_dim=DIM, neck="bn_dropout_fc_bn"),
    "inception": InceptionResNetV1Config(width=0.125, embedding_dim=DIM, dropout=0.2),
    "vit": ViTConfig(size="tiny", width=0.125, embedding_dim=DIM),
    "vit-masked": ViTConfig(size="tiny", width=0.125, embedding_dim=DIM, mask_share=0.3, drop_path=0.2),
    "vit-bn": ViTConfig(size="tiny", width=0.125, embedding_dim=DIM, patch_px=16, neck="bn_dropout_fc_bn"),
    "torchvision-resnet18": TorchvisionConfig(name="resnet18", embedding_dim=DIM, neck="bn_dropout_fc_bn"),
    "torchvision-squeezenet": TorchvisionConfig(name="squeezenet1_1", embedding_dim=DIM),
    "torchvision-mobilenet": TorchvisionConfig(name="mobilenet_v3_small", embedding_dim=DIM),
    "timm-resnet": TimmConfig(name="test_resnet", embedding_dim=DIM),
    "timm-vit": TimmConfig(name="test_vit", embedding_dim=DIM, neck="bn_dropout_fc_bn", dropout=0.1),
}


def every_small_one(*leave_out: str) -> pytest.MarkDecorator:
    """Parametrise a test over all kinds; those of timm are skipped where it is not installed."""
    needs_timm = pytest.mark.skipif(not HAS_TIMM, reason="timm is not installed")
    return pytest.mark.parametrize(
        "config",
        [
            pytest.param(config, id=name, marks=needs_timm if config.kind == "timm" else ())
            for name, config in SMALL.items()
            if name not in leave_out
        ],
    )


def usual_crop_px(config: BackboneConfig) -> int:
    """A small crop that the network can take."""
    return 80 if config.kind == "inception_resnet_v1" else 64


def as_loaded(images: Tensor) -> Tensor:
    """The same images laid out as the loader lays them out: channels last."""
    return images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
