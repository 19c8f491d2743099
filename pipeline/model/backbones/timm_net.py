"""Any model of timm as a backbone: its pooled features, and our neck behind them."""

from __future__ import annotations

import difflib
from typing import Any

from torch import Tensor, nn

from pipeline.config.backbones import TimmConfig
from pipeline.config.errors import UserError
from pipeline.model.backbones.crop_check import features_of_crop
from pipeline.model.backbones.neck import Neck


class TimmNetwork(nn.Module):
    """Crops [B, 3, S, S] float32 to embeddings [B, D].

    Raises:
        UserError: timm is not installed, it has no such model, or the model cannot take crops of that size.
    """

    def __init__(self, config: TimmConfig, crop_px: int) -> None:
        super().__init__()
        self.trunk = _build(config.name, crop_px)
        channels = features_of_crop(self.trunk, config.name, crop_px)
        self.neck = Neck(config.neck, channels, (), config.embedding_dim, config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.neck(self.trunk(x))


def _build(name: str, crop_px: int) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise UserError(
            "backbone.kind", "timm is not installed", "another kind of backbone", "pip install timm"
        ) from error
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=1)
        remedy = f"did you mean {close[0]!r}?" if close else ""
        raise UserError("backbone.name", f"timm has no model {name!r}", "e.g. resnet50", remedy)
    pretrained = timm.models.get_pretrained_cfg(name, allow_unregistered=False)
    # models with one place a patch have to be told; convolutional ones refuse the argument
    size: dict[str, Any] = {"img_size": crop_px} if pretrained is not None and pretrained.fixed_input_size else {}
    try:
        return timm.create_model(name, pretrained=False, in_chans=3, num_classes=0, **size)
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise UserError("backbone.name", f"{name} cannot be built for crops of {crop_px} px ({reason})") from error
