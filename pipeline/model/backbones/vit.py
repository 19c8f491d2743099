"""Vision transformer for aligned faces (Dosovitskiy et al. 2021, arXiv:2010.11929).

The form is that of InsightFace's arcface_torch (backbones/vit.py), whose figures for WebFace42M are the published ones:
patches of 9 px, a learnt position each, no class token, blocks with ReLU6 and without biases of query, key and value,
and a neck on all tokens laid end to end. In training a share of the patches may be left out of the blocks, in the
manner of masked autoencoders (He et al. 2022, arXiv:2111.06377); a learnt token stands in for them before the neck.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.config.backbones import ViTConfig
from pipeline.model.backbones.neck import Neck

SIZES = {"tiny": (256, 12), "small": (512, 12), "base": (512, 24), "large": (768, 24)}
"""Channels and blocks."""
NUM_HEADS = 8
INITIAL_STD = 0.02


class Block(nn.Module):
    """Attention and a perceptron, each on normalised tokens and with a shortcut: [B, N, C] to the same."""

    def __init__(self, channels: int, drop_path: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(channels)
        self.query_key_value = nn.Linear(channels, 3 * channels, bias=False)
        self.projection = nn.Linear(channels, channels)
        self.perceptron = nn.Sequential(
            nn.LayerNorm(channels), nn.Linear(channels, 4 * channels), nn.ReLU6(), nn.Linear(4 * channels, channels)
        )
        self.drop_path: nn.Module = nn.Identity()
        if drop_path > 0:
            from torchvision.ops import StochasticDepth  # slow to import

            self.drop_path = StochasticDepth(drop_path, mode="row")

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.drop_path(self._attend(self.attention_norm(tokens)))
        return tokens + self.drop_path(self.perceptron(tokens))

    def _attend(self, tokens: Tensor) -> Tensor:
        batch, num_tokens, channels = tokens.shape
        heads = self.query_key_value(tokens).view(batch, num_tokens, 3, NUM_HEADS, channels // NUM_HEADS)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query, key, value)
        return self.projection(attended.transpose(1, 2).reshape(batch, num_tokens, channels))


class VisionTransformer(nn.Module):
    """Crops [B, 3, S, S] float32 to embeddings [B, D]; S is a patch's side or more.

    What is random in training (patches left out, branches skipped) comes from torch's default generator, which the
    engine seeds by the stream position of the micro-batch.
    """

    def __init__(self, config: ViTConfig, crop_px: int) -> None:
        super().__init__()
        full_channels, num_blocks = SIZES[config.size]
        channels = max(1, round(full_channels * config.width / NUM_HEADS)) * NUM_HEADS
        num_patches = (crop_px // config.patch_px) ** 2
        # rounded so that a mask, where there is one, never leaves out nothing: its token would have no gradient
        self._num_seen = max(1, int(num_patches * (1 - config.mask_share)))
        self.patches = nn.Conv2d(3, channels, config.patch_px, stride=config.patch_px)
        self.positions = nn.Parameter(torch.empty(1, num_patches, channels))
        self.blocks = nn.Sequential(
            *(Block(channels, config.drop_path * number / max(1, num_blocks - 1)) for number in range(num_blocks))
        )
        self.norm = nn.LayerNorm(channels)
        self.neck = Neck(config.neck, channels, (num_patches,), config.embedding_dim, config.dropout)
        self.mask_token: nn.Parameter | None = None
        if self._num_seen < num_patches:
            self.mask_token = nn.Parameter(torch.empty(1, 1, channels))
            nn.init.trunc_normal_(self.mask_token, std=INITIAL_STD)
        nn.init.trunc_normal_(self.positions, std=INITIAL_STD)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=INITIAL_STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        if self.training and self.mask_token is not None:
            tokens = self._see_some(tokens, self.mask_token)
        else:
            tokens = self.norm(self.blocks(tokens))
        return self.neck(tokens.transpose(1, 2))

    def _see_some(self, tokens: Tensor, mask_token: Tensor) -> Tensor:
        """Run the blocks on some patches of each photo and put the mask's token in the others' places."""
        chances = torch.rand(tokens.shape[:2], device=tokens.device)
        seen = chances.argsort(dim=1)[:, : self._num_seen, None].expand(-1, -1, tokens.shape[2])
        found = self.norm(self.blocks(tokens.gather(1, seen)))
        return mask_token.to(found.dtype).expand_as(tokens).scatter(1, seen, found)
