"""MobileFaceNet (Chen et al. 2018, arXiv:1804.07573, table 1): inverted residuals, then a global depthwise convolution.

The global depthwise convolution weighs each place of the last map on its own, where average pooling would treat the
corner of an aligned crop like its centre.
"""

from __future__ import annotations

from torch import Tensor, nn

# expansion, channels, repeats, stride of the first
STAGES = ((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1))
LAST_CHANNELS = 512


def _conv_norm(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, pad: bool = True
) -> list[nn.Module]:
    padding = kernel // 2 if pad else 0
    return [nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False), nn.BatchNorm2d(outputs)]


class Bottleneck(nn.Module):
    """Inverted residual with PReLU and a linear projection (Sandler et al. 2018, arXiv:1801.04381)."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.layers = nn.Sequential(
            *_conv_norm(inputs, hidden, 1),
            nn.PReLU(hidden),
            *_conv_norm(hidden, hidden, 3, stride, groups=hidden),
            nn.PReLU(hidden),
            *_conv_norm(hidden, outputs, 1),
        )
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x)
        return x + y if self.adds else y


class MobileFaceNet(nn.Module):
    """Crops [B, 3, S, S] float32 to embeddings [B, D]; S is a multiple of 16."""

    def __init__(self, width: float, embedding_dim: int, crop_px: int) -> None:
        super().__init__()

        def scaled(channels: int) -> int:
            return max(8, round(channels * width / 8) * 8)

        inputs = scaled(64)
        layers: list[nn.Module] = [*_conv_norm(3, inputs, 3, stride=2), nn.PReLU(inputs)]
        layers += [*_conv_norm(inputs, inputs, 3, groups=inputs), nn.PReLU(inputs)]
        for expansion, channels, repeats, stride in STAGES:
            for number in range(repeats):
                layers.append(Bottleneck(inputs, scaled(channels), expansion, stride if number == 0 else 1))
                inputs = scaled(channels)
        last = scaled(LAST_CHANNELS)
        layers += [*_conv_norm(inputs, last, 1), nn.PReLU(last)]
        self.features = nn.Sequential(*layers)
        self.pool = nn.Sequential(*_conv_norm(last, last, crop_px // 16, groups=last, pad=False))
        self.embed = nn.Linear(last, embedding_dim, bias=False)
        self.embed_norm = nn.BatchNorm1d(embedding_dim)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        return self.embed_norm(self.embed(self.pool(self.features(x)).flatten(1)))
