"""An IResNet as arcface_torch publishes it, restated layer by layer: what its files hold, and what they must give.

Structure and names only: a 3×3 stem at stride 1; four stages of 64 to 512 channels whose first block has stride 2;
a block is bn1, conv1, bn2, prelu, conv2 (which has the stride), bn3, plus a 1×1 convolution with norm where the shape
changes; then bn2, dropout, fc on the flattened 7×7 map, and the norm `features`.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

DEPTHS = {18: [2, 2, 2, 2], 34: [3, 4, 6, 3], 50: [3, 4, 14, 3], 100: [3, 13, 30, 3], 200: [6, 26, 60, 6]}


class ReferenceBlock(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.prelu = nn.PReLU(after)
        self.conv2 = nn.Conv2d(after, after, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(after)
        self.downsample = None
        if stride > 1:
            self.downsample = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        skipped = x if self.downsample is None else self.downsample(x)
        return skipped + self.bn3(self.conv2(self.prelu(self.bn2(self.conv1(self.bn1(x))))))


class ReferenceIResNet(nn.Module):
    """Crops [B, 3, S, S] float32 in [−1, 1] to embeddings [B, D]; S is 112 as published, or another multiple of 16."""

    def __init__(self, depth: int, embedding_dim: int, crop_px: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.prelu = nn.PReLU(64)
        before = 64
        for stage, (num_blocks, after) in enumerate(zip(DEPTHS[depth], (64, 128, 256, 512), strict=True), start=1):
            blocks = [ReferenceBlock(before, after, 2)]
            blocks += [ReferenceBlock(after, after, 1) for _ in range(num_blocks - 1)]
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
            before = after
        self.bn2 = nn.BatchNorm2d(512)
        self.dropout = nn.Dropout(0.4)
        self.fc = nn.Linear(512 * (crop_px // 16) ** 2, embedding_dim)
        self.features = nn.BatchNorm1d(embedding_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.prelu(self.bn1(self.conv1(x)))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return self.features(self.fc(self.dropout(torch.flatten(self.bn2(x), 1))))


def scaled(crops: Tensor) -> Tensor:
    """uint8 RGB to what arcface_torch feeds its networks."""
    return (crops.float() / 255 - 0.5) / 0.5


def trained_looking(depth: int, seed: int, embedding_dim: int = 512, crop_px: int = 112) -> ReferenceIResNet:
    """A network in eval mode, every weight and running statistic drawn at random and different from all defaults."""
    generator = torch.Generator().manual_seed(seed)
    model = ReferenceIResNet(depth, embedding_dim, crop_px)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("num_batches_tracked"):
                value.fill_(1000)
            elif value.ndim == 1:
                # norms, slopes and biases: around 1, 0.25, 0
                middle = 0.25 if "prelu" in name else 0.0 if name.endswith(("bias", "mean")) else 1.0
                value.copy_(middle + 0.2 * (torch.rand(value.shape, generator=generator) - 0.5))
            else:
                fan_in = value[0].numel()
                value.copy_(torch.randn(value.shape, generator=generator) / fan_in**0.5)
    return model.eval()


def saved(model: nn.Module) -> OrderedDict[str, Tensor]:
    """What arcface_torch saves of a backbone."""
    return OrderedDict((name, value.clone()) for name, value in model.state_dict().items())
