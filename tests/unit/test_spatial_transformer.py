"""The spatial transformer: begins as the identity, stays in its bounds, and learns where the face is."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.config.backbones import IResNetConfig, SpatialTransformerConfig
from pipeline.model.backbones import build_backbone
from pipeline.model.backbones.spatial_transformer import SpatialTransformer

CROP_PX = 64


def crops(number: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(number, 3, 8, 8, generator=generator) * 2 - 1
    return functional.interpolate(coarse, size=CROP_PX, mode="bicubic").clamp(-1, 1)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_it_begins_as_the_identity(precision: torch.dtype) -> None:
    transformer = SpatialTransformer(SpatialTransformerConfig())
    given = crops(4)
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        torch.testing.assert_close(transformer(given), given, atol=1e-4, rtol=0)


def test_it_stays_in_its_bounds_whatever_it_learns() -> None:
    transformer = SpatialTransformer(SpatialTransformerConfig(max_change=0.2))
    torch.nn.init.normal_(transformer.change.weight, std=100)
    changes = transformer.transforms(crops(16)) - torch.eye(2, 3)
    assert changes.abs().max().item() == pytest.approx(0.2)


def test_a_transform_says_where_the_new_crop_is_taken_from() -> None:
    transformer = SpatialTransformer(SpatialTransformerConfig(max_change=0.5))
    with torch.no_grad():
        transformer.change.bias[2] = math.atanh(0.5)  # a quarter of half the side: eight pixels to the right
    given = crops(2)
    shifted = transformer.eval()(given)
    torch.testing.assert_close(shifted[..., :-8], given[..., 8:], atol=1e-4, rtol=0)
    # beyond its border a crop goes on as at its border
    torch.testing.assert_close(shifted[..., -8:], given[..., -1:].expand(-1, -1, -1, 8), atol=1e-4, rtol=0)


def test_it_learns_to_bring_a_spot_to_the_middle() -> None:
    torch.manual_seed(0)
    transformer = SpatialTransformer(SpatialTransformerConfig(max_change=0.5))
    optimizer = torch.optim.Adam(transformer.parameters(), lr=3e-3)
    axis = torch.linspace(-1, 1, CROP_PX)

    def spots(centres: Tensor) -> Tensor:
        down, along = (axis - centres[:, side, None] for side in (0, 1))
        bright = torch.exp(-(down.square()[:, :, None] + along.square()[:, None, :]) / 0.1)
        return (2 * bright - 1)[:, None].expand(-1, 3, -1, -1)

    middle = spots(torch.zeros(1, 2))

    def distance(number: int) -> Tensor:
        return (transformer(spots((torch.rand(number, 2) - 0.5) * 0.6)) - middle).square().mean()

    before = distance(64).item()
    for _ in range(60):
        optimizer.zero_grad()
        distance(32).backward()
        optimizer.step()
    assert distance(64).item() < 0.3 * before


def test_a_network_begins_the_same_with_and_without_it() -> None:
    plain = build_backbone(IResNetConfig(depth=18, width=0.125), CROP_PX, seed=5)
    config = IResNetConfig(depth=18, width=0.125, alignment=SpatialTransformerConfig())
    aligned = build_backbone(config, CROP_PX, seed=5)
    state = aligned.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in plain.state_dict().items())
    own = [name for name in state if name.startswith("alignment.")]
    assert len(own) == len(state) - len(plain.state_dict())
    images = torch.randint(0, 256, (2, 3, CROP_PX, CROP_PX), dtype=torch.uint8)
    torch.testing.assert_close(plain.eval()(images), aligned.eval()(images), atol=1e-3, rtol=1e-3)
