"""SphereFace-20 (Liu et al. 2017, arXiv:1704.08063, table 2): 20 layers, PReLU, residual pairs, no batch norm.

Each stage halves the map by a convolution with a bias and adds pairs of convolutions without one. The pairs begin near
zero, as in the authors' definition of the network (Gaussian, σ = 0.01), so that a stage begins near the identity;
without batch norm a deep network would not train otherwise.
"""

from __future__ import annotations

from torch import Tensor, nn

from pipeline.config.backbones import SphereFaceConfig
from pipeline.model.backbones.neck import Neck

NUM_PAIRS = (1, 2, 4, 1)
CHANNELS = (64, 128, 256, 512)
PAIR_STD = 0.01


class ResidualPair(nn.Module):
    """x + PReLU(Conv(PReLU(Conv(x)))): [B, C, H, W] to the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential()
        for _ in range(2):
            conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
            nn.init.normal_(conv.weight, 0, PAIR_STD)
            self.layers.extend([conv, nn.PReLU(channels)])

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class SphereFace20(nn.Module):
    """Crops [B, 3, S, S] float32 to embeddings [B, D]; S is a multiple of 16."""

    def __init__(self, config: SphereFaceConfig, crop_px: int) -> None:
        super().__init__()
        self.stages = nn.Sequential()
        inputs = 3
        for num_pairs, full_channels in zip(NUM_PAIRS, CHANNELS, strict=True):
            channels = max(8, round(full_channels * config.width / 8) * 8)
            halving = nn.Conv2d(inputs, channels, 3, stride=2, padding=1)
            nn.init.xavier_uniform_(halving.weight)
            assert halving.bias is not None
            nn.init.zeros_(halving.bias)
            pairs = [ResidualPair(channels) for _ in range(num_pairs)]
            self.stages.append(nn.Sequential(halving, nn.PReLU(channels), *pairs))
            inputs = channels
        side = crop_px // 16
        self.neck = Neck(config.neck, inputs, (side, side), config.embedding_dim, config.dropout)
        nn.init.xavier_uniform_(self.neck.embed.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.neck(self.stages(x))
