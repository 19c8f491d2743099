"""Learnt alignment (Jaderberg et al. 2015, "Spatial Transformer Networks", arXiv:1506.02025, section 3).

A small network looks at a shrunken crop and gives an affine transform, by which the crop is sampled anew. Its last
layer begins at zero, so the transform begins as the identity; a tanh bounds how far it may go from there.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.config.backbones import SpatialTransformerConfig

LOOK_PX = 32
"""Side of the shrunken crop."""
CHANNELS = (16, 32, 64)


class SpatialTransformer(nn.Module):
    """Crops [B, 3, S, S] float32 to crops of the same size."""

    def __init__(self, config: SpatialTransformerConfig) -> None:
        super().__init__()
        self.max_change = config.max_change
        layers: list[nn.Module] = []
        inputs = 3
        for channels in CHANNELS:
            layers += [
                nn.Conv2d(inputs, channels, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(),
            ]
            inputs = channels
        self.localisation = nn.Sequential(*layers, nn.Flatten())
        self.change = nn.Linear(inputs * (LOOK_PX // 2 ** len(CHANNELS)) ** 2, 6)
        nn.init.zeros_(self.change.weight)
        nn.init.zeros_(self.change.bias)

    def forward(self, crops: Tensor) -> Tensor:
        # in float32 whatever the precision of the rest: bfloat16 rounds places in 112 px by a tenth of a pixel
        # (autocast knows no meta device, on which networks are counted and checked)
        with torch.autocast("cpu" if crops.is_meta else crops.device.type, enabled=False):
            # outside its border a crop goes on as at its border: black edges would be something to see
            grid = functional.affine_grid(self.transforms(crops), list(crops.shape), align_corners=False)
            return functional.grid_sample(crops, grid, padding_mode="border", align_corners=False)

    def transforms(self, crops: Tensor) -> Tensor:
        """[B, 2, 3] float32: from places in the new crop to places in the old one, −1 and 1 being its borders."""
        found = self.localisation(functional.adaptive_avg_pool2d(crops, LOOK_PX))
        identity = torch.eye(2, 3, device=crops.device)
        return identity + self.max_change * torch.tanh(self.change(found)).view(-1, 2, 3)
