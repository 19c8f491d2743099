"""Configuration sections of the backbones: networks that turn crops into embeddings."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config.section import Section

NeckKind = Literal["bn_dropout_fc_bn", "dropout_fc_bn", "fc_bn_fc_bn", "linear"]
"""What stands between a network's last map and the embedding, named by its layers."""
NECKS_WITH_DROPOUT: tuple[NeckKind, ...] = ("bn_dropout_fc_bn", "dropout_fc_bn")


class SpatialTransformerConfig(Section):
    """Learnt alignment in front of a network (Jaderberg et al. 2015, arXiv:1506.02025): a small network looks at the
    crop and says how to shift, turn, scale and shear it. It begins as the identity."""

    max_change: float = Field(0.3, gt=0, le=1)
    """Greatest change of each of the six numbers of the transform from the identity's. 0.3 shifts by 15 % of the
    side and turns by 17° at most; a bound keeps early steps from moving the face out of the crop."""


class BackboneSection(Section):
    """What every backbone has."""

    embedding_dim: int = Field(512, ge=8)
    """D, the length of an embedding."""
    alignment: SpatialTransformerConfig | None = None
    """A spatial transformer in front of the network; None for none, {} for one with its defaults."""


class NeckSection(BackboneSection):
    """What backbones with a choice of necks have."""

    neck: NeckKind
    """Layers between the last map and the embedding."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout before the embedding layer, in necks that have it; masks are drawn by stream position, not by rank."""

    @model_validator(mode="after")
    def _neck_has_dropout(self) -> NeckSection:
        if self.dropout > 0 and self.neck not in NECKS_WITH_DROPOUT:
            raise ValueError(f"dropout {self.dropout:g}, but neck {self.neck!r} has none")
        return self


class IResNetConfig(NeckSection):
    """Residual network of ArcFace (Deng et al. 2019, arXiv:1801.07698, section 3.2.2): BN-Conv-BN-PReLU-Conv-BN."""

    kind: Literal["iresnet"] = "iresnet"
    depth: Literal[18, 34, 50, 100, 200] = 50
    """Number of layers."""
    se: bool = False
    """Squeeze-and-excitation at the end of each residual branch (Hu et al. 2018, arXiv:1709.01507)."""
    width: float = Field(1.0, gt=0)
    """Factor on all channel counts; 0.25 trains on a laptop."""
    neck: Literal["bn_dropout_fc_bn", "linear"] = "bn_dropout_fc_bn"
    """Layers between the last map, flattened, and the embedding."""


class SphereFaceConfig(NeckSection):
    """SphereFace-20 (Liu et al. 2017, arXiv:1704.08063, table 2): 20 layers, no batch norm in them."""

    kind: Literal["sphereface20"] = "sphereface20"
    width: float = Field(1.0, gt=0)
    """Factor on all channel counts."""
    neck: Literal["linear", "bn_dropout_fc_bn"] = "linear"
    """Layers between the last map, flattened, and the embedding; the paper has a linear one."""


class InceptionResNetV1Config(NeckSection):
    """Inception-ResNet-v1 (Szegedy et al. 2016, arXiv:1602.07261) in the form that public FaceNet models have."""

    kind: Literal["inception_resnet_v1"] = "inception_resnet_v1"
    width: float = Field(1.0, gt=0)
    """Factor on all channel counts."""
    neck: Literal["dropout_fc_bn", "bn_dropout_fc_bn", "linear"] = "dropout_fc_bn"
    """Layers between the last map, averaged over its places, and the embedding."""


class ViTConfig(NeckSection):
    """Vision transformer (Dosovitskiy et al. 2021, arXiv:2010.11929) in the form that InsightFace's arcface_torch
    trains on faces: patches of 9 px, no class token, the embedding from all patches."""

    kind: Literal["vit"] = "vit"
    size: Literal["tiny", "small", "base", "large"] = "small"
    """Channels and blocks: 256 × 12, 512 × 12, 512 × 24, 768 × 24."""
    patch_px: int = Field(9, ge=1)
    """Side of a patch; what is left over at the right and the bottom of a crop goes unseen."""
    mask_share: float = Field(0.0, ge=0, lt=1)
    """Share of the patches that a training step leaves out, at random for each photo; masks are drawn by stream
    position, not by rank."""
    drop_path: float = Field(0.0, ge=0, lt=1)
    """Chance that a photo skips a branch of the last block, rising linearly from 0 in the first (stochastic depth,
    Huang et al. 2016, arXiv:1603.09382); drawn like the masks."""
    width: float = Field(1.0, gt=0)
    """Factor on the channels."""
    neck: Literal["fc_bn_fc_bn", "bn_dropout_fc_bn", "linear"] = "fc_bn_fc_bn"
    """Layers between the patches, laid end to end, and the embedding."""


class MobileFaceNetConfig(BackboneSection):
    """MobileFaceNet (Chen et al. 2018, arXiv:1804.07573); its global depthwise convolution is its neck."""

    kind: Literal["mobilefacenet"] = "mobilefacenet"
    width: float = Field(1.0, gt=0)
    """Factor on all channel counts."""


class TorchvisionConfig(NeckSection):
    """Any torchvision classifier, its last layer replaced by the neck."""

    kind: Literal["torchvision"] = "torchvision"
    name: str = "resnet18"
    """Name in `torchvision.models`, for example resnet50, convnext_tiny or vit_b_16."""
    neck: Literal["linear", "bn_dropout_fc_bn"] = "linear"
    """Layers in place of the classification layer."""


class TimmConfig(NeckSection):
    """Any model of timm that gives features, the neck behind them."""

    kind: Literal["timm"] = "timm"
    name: str = "resnet18"
    """Name as in `timm.list_models()`, for example convnext_tiny or vit_small_patch16_224."""
    neck: Literal["linear", "bn_dropout_fc_bn"] = "linear"
    """Layers between timm's pooled features and the embedding."""


BackboneConfig = Annotated[
    IResNetConfig
    | MobileFaceNetConfig
    | SphereFaceConfig
    | InceptionResNetV1Config
    | ViTConfig
    | TorchvisionConfig
    | TimmConfig,
    Field(discriminator="kind"),
]
