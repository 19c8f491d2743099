"""The network as an exported file holds it: with the input that others expect, of operators that others know."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.model.backbones import FaceModel
from pipeline.model.backbones.spatial_transformer import LOOK_PX, SpatialTransformer

MEAN = STD = 127.5
"""What `FaceModel` subtracts from pixels, and divides them by."""


class ExportedNetwork(nn.Module):
    """A trained model for export, in eval mode; it shares the model's tensors.

    Input: uint8 [B, 3, H, W] RGB where normalisation is inside, else float32 (pixel − 127.5) / 127.5.
    Output: embeddings [B, D] float32, not normalised.

    Args:
        model: the trained model.
        is_normalised_inside: which of the two inputs.
        alignment: what stands in front of the backbone, in place of the model's own.
    """

    def __init__(self, model: FaceModel, is_normalised_inside: bool, alignment: nn.Module | None) -> None:
        super().__init__()
        self.is_normalised_inside = is_normalised_inside
        self.alignment = alignment
        self.backbone = model.backbone
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        pixels = images
        if self.is_normalised_inside:
            pixels = images.to(torch.float32).sub(MEAN).div(STD)
        if self.alignment is not None:
            pixels = self.alignment(pixels)
        return self.backbone(pixels).float()


class OnnxAlignment(nn.Module):
    """A trained `SpatialTransformer` in operators that ONNX has: neither the affine grid nor pooling to a size that
    does not divide the crop's is among them, but both are products with constant matrices."""

    means: Tensor
    identity: Tensor
    places: Tensor

    def __init__(self, trained: SpatialTransformer, size_px: int) -> None:
        super().__init__()
        self.max_change = trained.max_change
        self.localisation = trained.localisation
        self.change = trained.change
        self.register_buffer("means", _window_means(size_px, LOOK_PX), persistent=False)
        self.register_buffer("identity", torch.eye(2, 3), persistent=False)
        self.register_buffer("places", _places(size_px), persistent=False)
        self.size_px = size_px

    def forward(self, crops: Tensor) -> Tensor:
        """[B, 3, S, S] float32 to the same, as `SpatialTransformer.forward`."""
        look = self.means @ crops @ self.means.T
        change = self.change(self.localisation(look))
        transforms = self.identity + self.max_change * torch.tanh(change).view(-1, 2, 3)
        grid = (self.places @ transforms.transpose(1, 2)).view(-1, self.size_px, self.size_px, 2)
        return functional.grid_sample(crops, grid, padding_mode="border", align_corners=False)


def _window_means(size_px: int, num_windows: int) -> Tensor:
    """[num_windows, size_px]: row i averages the window from floor(i S / N) to ceil((i + 1) S / N), as
    `adaptive_avg_pool2d` does along each axis."""
    means = torch.zeros(num_windows, size_px)
    for window in range(num_windows):
        start, stop = window * size_px // num_windows, -(-(window + 1) * size_px // num_windows)
        means[window, start:stop] = 1.0 / (stop - start)
    return means


def _places(size_px: int) -> Tensor:
    """[S · S, 3]: x, y and 1 of each pixel's centre, the crop's borders being −1 and 1, rows from the top."""
    centres = (torch.arange(size_px, dtype=torch.float32) * 2 + 1) / size_px - 1
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    return torch.stack([x, y, torch.ones_like(x)], dim=-1).view(-1, 3)
