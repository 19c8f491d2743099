"""IResNet, the residual network of ArcFace (Deng et al. 2019, arXiv:1801.07698, section 3.2.2).

Its block is BN-Conv-BN-PReLU-Conv-BN with the stride in the second convolution; four stages halve the crop, and the
embedding layer is BN-dropout-FC-BN on the flattened map, whose position dependence suits aligned faces.
"""

from __future__ import annotations

from torch import Tensor, nn

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 14, 3), 100: (3, 13, 30, 3)}
CHANNELS = (64, 128, 256, 512)
NORM_EPS = 1e-5


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


class IResNetBlock(nn.Module):
    """One residual block: [B, inputs, H, W] to [B, outputs, H / stride, W / stride]."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.BatchNorm2d(inputs, NORM_EPS),
            _conv(inputs, outputs, 3),
            nn.BatchNorm2d(outputs, NORM_EPS),
            nn.PReLU(outputs),
            _conv(outputs, outputs, 3, stride),
            nn.BatchNorm2d(outputs, NORM_EPS),
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

    def __init__(self, depth: int, width: float, embedding_dim: int, crop_px: int, dropout: float = 0.0) -> None:
        super().__init__()
        channels = [max(8, round(c * width / 8) * 8) for c in CHANNELS]
        self.stem = nn.Sequential(
            _conv(3, channels[0], 3), nn.BatchNorm2d(channels[0], NORM_EPS), nn.PReLU(channels[0])
        )
        blocks: list[nn.Module] = []
        inputs = channels[0]
        for num_blocks, outputs in zip(BLOCKS[depth], channels, strict=True):
            for number in range(num_blocks):
                blocks.append(IResNetBlock(inputs, outputs, stride=2 if number == 0 else 1))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(inputs, NORM_EPS)
        self.dropout = nn.Dropout(dropout)
        self.embed = nn.Linear(inputs * (crop_px // 16) ** 2, embedding_dim)
        self.embed_norm = nn.BatchNorm1d(embedding_dim, NORM_EPS)
        # the embedding's scale is the head's affair: a trainable gain here would be redundant with it
        self.embed_norm.weight.requires_grad_(False)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0, 0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.blocks(self.stem(x)))
        return self.embed_norm(self.embed(self.dropout(x).flatten(1)))
