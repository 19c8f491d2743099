"""IResNet, the residual network of ArcFace (Deng et al. 2019, arXiv:1801.07698, section 3.2.2).

Its block is BN-Conv-BN-PReLU-Conv-BN with the stride in the second convolution; four stages halve the crop, and the
neck sees the flattened map, whose position dependence suits aligned faces. Depth 200 is that of InsightFace's
arcface_torch.
"""

from __future__ import annotations

from torch import Tensor, nn

from pipeline.config.backbones import IResNetConfig
from pipeline.model.backbones.neck import Neck

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 14, 3), 100: (3, 13, 30, 3), 200: (6, 26, 60, 6)}
CHANNELS = (64, 128, 256, 512)
NORM_EPS = 1e-5
SE_REDUCTION = 16


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


class SqueezeExcitation(nn.Module):
    """Weighs channels by a function of their means (Hu et al. 2018, arXiv:1709.01507, equations 2 to 4)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(1, channels // SE_REDUCTION)
        self.weigh = nn.Sequential(
            nn.Linear(channels, hidden, bias=False),
            nn.ReLU(),
            nn.Linear(hidden, channels, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weigh(x.mean((2, 3)))[:, :, None, None]


class IResNetBlock(nn.Module):
    """One residual block: [B, inputs, H, W] to [B, outputs, H / stride, W / stride]."""

    def __init__(self, inputs: int, outputs: int, stride: int, se: bool) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.BatchNorm2d(inputs, NORM_EPS),
            _conv(inputs, outputs, 3),
            nn.BatchNorm2d(outputs, NORM_EPS),
            nn.PReLU(outputs),
            _conv(outputs, outputs, 3, stride),
            nn.BatchNorm2d(outputs, NORM_EPS),
            *([SqueezeExcitation(outputs)] if se else []),
        )
        self._stride = stride
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(_conv(inputs, outputs, 1), nn.BatchNorm2d(outputs, NORM_EPS))

    def forward(self, x: Tensor) -> Tensor:
        # What a 1 × 1 convolution with a stride sees, picked first: on a CPU, torch 2.14's backward pass of that one
        # writes beyond its memory where images are channels last and have 4 or 8 channels.
        seen = x if self._stride == 1 else x[:, :, :: self._stride, :: self._stride]
        return self.residual(x) + self.shortcut(seen)


class IResNet(nn.Module):
    """Crops [B, 3, S, S] float32 to embeddings [B, D]; S is a multiple of 16."""

    def __init__(self, config: IResNetConfig, crop_px: int) -> None:
        super().__init__()
        channels = [max(8, round(c * config.width / 8) * 8) for c in CHANNELS]
        self.stem = nn.Sequential(
            _conv(3, channels[0], 3), nn.BatchNorm2d(channels[0], NORM_EPS), nn.PReLU(channels[0])
        )
        blocks: list[nn.Module] = []
        inputs = channels[0]
        for num_blocks, outputs in zip(BLOCKS[config.depth], channels, strict=True):
            for number in range(num_blocks):
                blocks.append(IResNetBlock(inputs, outputs, stride=2 if number == 0 else 1, se=config.se))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        side = crop_px // 16
        self.neck = Neck(config.neck, inputs, (side, side), config.embedding_dim, config.dropout, NORM_EPS)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0, 0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.neck(self.blocks(self.stem(x)))
