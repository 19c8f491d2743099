"""Inception-ResNet-v1 (Szegedy et al. 2016, arXiv:1602.07261, figures 10 to 14), as public FaceNet models have it.

Those (github.com/davidsandberg/facenet and its ports) add one last block without a ReLU, scale the residuals by 0.17,
0.10 and 0.20, and take any crop that leaves a map of one place or more. Convolutions at a map's border are not padded
in the stem and where the map is halved.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.config.backbones import InceptionResNetV1Config
from pipeline.model.backbones.neck import Neck

MIN_CROP_PX = 75
"""The smallest crop that leaves a map of one place."""
NORM_EPS = 1e-3
SCALES = (0.17, 0.10, 0.20)
REPEATS = (5, 10, 5)

Kernel = int | tuple[int, int]


def _layer(inputs: int, outputs: int, kernel: Kernel, stride: int = 1, pad: bool = True) -> nn.Sequential:
    """Convolution, batch norm, ReLU."""
    sides = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = (sides[0] // 2, sides[1] // 2) if pad else 0
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False),
        nn.BatchNorm2d(outputs, NORM_EPS),
        nn.ReLU(),
    )


class Branches(nn.Module):
    """Several layers side by side, their channels one after the other."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], dim=1)


class ResidualBranches(nn.Module):
    """x + scale · projection(branches(x)), then a ReLU where `activates`."""

    def __init__(self, branches: Branches, inputs: int, channels: int, scale: float, activates: bool = True) -> None:
        super().__init__()
        self.branches = branches
        self.projection = nn.Conv2d(inputs, channels, 1)
        self.scale = scale
        self.activation: nn.Module = nn.ReLU() if activates else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(x + self.scale * self.projection(self.branches(x)))


class InceptionResNetV1(nn.Module):
    """Crops [B, 3, S, S] float32 to embeddings [B, D]; S is `MIN_CROP_PX` or more."""

    def __init__(self, config: InceptionResNetV1Config) -> None:
        super().__init__()

        def scaled(channels: int) -> int:
            return max(8, round(channels * config.width / 8) * 8)

        c32, c64, c80, c128, c192, c256, c384 = (scaled(c) for c in (32, 64, 80, 128, 192, 256, 384))
        self.stem = nn.Sequential(
            _layer(3, c32, 3, stride=2, pad=False),
            _layer(c32, c32, 3, pad=False),
            _layer(c32, c64, 3),
            nn.MaxPool2d(3, stride=2),
            _layer(c64, c80, 1),
            _layer(c80, c192, 3, pad=False),
            _layer(c192, c256, 3, stride=2, pad=False),
        )

        def block_a() -> nn.Module:
            branches = Branches(
                _layer(c256, c32, 1),
                nn.Sequential(_layer(c256, c32, 1), _layer(c32, c32, 3)),
                nn.Sequential(_layer(c256, c32, 1), _layer(c32, c32, 3), _layer(c32, c32, 3)),
            )
            return ResidualBranches(branches, 3 * c32, c256, SCALES[0])

        self.stage_a = nn.Sequential(*(block_a() for _ in range(REPEATS[0])))
        self.reduction_a = Branches(
            _layer(c256, c384, 3, stride=2, pad=False),
            nn.Sequential(_layer(c256, c192, 1), _layer(c192, c192, 3), _layer(c192, c256, 3, stride=2, pad=False)),
            nn.MaxPool2d(3, stride=2),
        )
        channels_b = c384 + c256 + c256

        def block_b() -> nn.Module:
            branches = Branches(
                _layer(channels_b, c128, 1),
                nn.Sequential(_layer(channels_b, c128, 1), _layer(c128, c128, (1, 7)), _layer(c128, c128, (7, 1))),
            )
            return ResidualBranches(branches, 2 * c128, channels_b, SCALES[1])

        self.stage_b = nn.Sequential(*(block_b() for _ in range(REPEATS[1])))
        self.reduction_b = Branches(
            nn.Sequential(_layer(channels_b, c256, 1), _layer(c256, c384, 3, stride=2, pad=False)),
            nn.Sequential(_layer(channels_b, c256, 1), _layer(c256, c256, 3, stride=2, pad=False)),
            nn.Sequential(
                _layer(channels_b, c256, 1), _layer(c256, c256, 3), _layer(c256, c256, 3, stride=2, pad=False)
            ),
            nn.MaxPool2d(3, stride=2),
        )
        channels_c = channels_b + c384 + c256 + c256

        def block_c(scale: float, activates: bool = True) -> nn.Module:
            branches = Branches(
                _layer(channels_c, c192, 1),
                nn.Sequential(_layer(channels_c, c192, 1), _layer(c192, c192, (1, 3)), _layer(c192, c192, (3, 1))),
            )
            return ResidualBranches(branches, 2 * c192, channels_c, scale, activates)

        self.stage_c = nn.Sequential(
            *(block_c(SCALES[2]) for _ in range(REPEATS[2])), block_c(scale=1.0, activates=False)
        )
        self.neck = Neck(config.neck, channels_c, (), config.embedding_dim, config.dropout, NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.reduction_a(self.stage_a(self.stem(x)))
        x = self.stage_c(self.reduction_b(self.stage_b(x)))
        return self.neck(x.mean((2, 3)))
