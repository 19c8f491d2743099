"""What stands between a network's last map and the embedding."""

from __future__ import annotations

import math

from torch import Tensor, nn

from pipeline.config.backbones import NeckKind


class Neck(nn.Module):
    """From a map [B, C, H, W], tokens [B, C, N] or a vector [B, C] to an embedding [B, D].

    Args:
        kind: `bn_dropout_fc_bn` is ArcFace's (arXiv:1801.07698, section 3.2.2), `dropout_fc_bn` that of FaceNet's
            public models, `fc_bn_fc_bn` that of InsightFace's transformers, `linear` a linear layer with a bias.
        channels: C.
        places: (H, W), (N,) or (); all of a photo's values are laid end to end.
        embedding_dim: D.
        dropout: share of the values set to 0, in necks whose name has dropout.
        norm_eps: ε of the batch norms.
    """

    def __init__(
        self,
        kind: NeckKind,
        channels: int,
        places: tuple[int, ...],
        embedding_dim: int,
        dropout: float = 0.0,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        inputs = channels * math.prod(places)
        self.norm: nn.Module = nn.Identity()
        self.dropout: nn.Module = nn.Identity()
        self.squeeze: nn.Module = nn.Identity()
        self.embed_norm: nn.Module = nn.Identity()
        if kind == "bn_dropout_fc_bn":
            self.norm = (nn.BatchNorm2d if len(places) == 2 else nn.BatchNorm1d)(channels, norm_eps)
        if kind in ("bn_dropout_fc_bn", "dropout_fc_bn"):
            self.dropout = nn.Dropout(dropout)
        if kind == "fc_bn_fc_bn":
            self.squeeze = nn.Sequential(nn.Linear(inputs, channels, bias=False), nn.BatchNorm1d(channels, norm_eps))
            inputs = channels
        self.embed = nn.Linear(inputs, embedding_dim, bias=kind in ("linear", "bn_dropout_fc_bn"))
        if kind != "linear":
            self.embed_norm = nn.BatchNorm1d(embedding_dim, norm_eps)
            # the embedding's scale is the head's affair: a trainable gain here would be redundant with it
            self.embed_norm.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.embed_norm(self.embed(self.squeeze(self.dropout(self.norm(x)).flatten(1))))
