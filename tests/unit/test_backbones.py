"""Backbones: shapes, equal starts, and refusals."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from pipeline.config.backbones import BackboneConfig, IResNetConfig, MobileFaceNetConfig, TorchvisionConfig
from pipeline.config.errors import UserError
from pipeline.model.backbones import build_backbone

CONFIGS = [
    IResNetConfig(depth=18, width=0.125, embedding_dim=32),
    IResNetConfig(depth=50, width=0.125, embedding_dim=32),
    MobileFaceNetConfig(width=0.25, embedding_dim=32),
    TorchvisionConfig(name="resnet18", embedding_dim=32),
    TorchvisionConfig(name="squeezenet1_1", embedding_dim=32),
    TorchvisionConfig(name="mobilenet_v3_small", embedding_dim=32),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.kind}-{getattr(c, 'name', getattr(c, 'depth', ''))}")
@pytest.mark.parametrize("crop_px", [64, 112])
def test_uint8_crops_become_float_embeddings(config: BackboneConfig, crop_px: int) -> None:
    model = build_backbone(config, crop_px, seed=0)
    images = torch.randint(0, 256, (3, 3, crop_px, crop_px), dtype=torch.uint8)
    embeddings = model(images)
    assert embeddings.shape == (3, 32)
    assert embeddings.dtype == torch.float32
    embeddings.square().mean().backward()
    untouched = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert untouched == []


def test_initial_weights_follow_the_seed_and_leave_the_global_generator_alone() -> None:
    config = CONFIGS[0]
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, again, other = (build_backbone(config, 64, seed) for seed in (3, 3, 4))
    assert torch.equal(before, torch.get_rng_state())
    weights = [model.backbone.neck.embed.weight for model in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_iresnet_has_the_published_number_of_parameters() -> None:
    # arcface_torch's iresnet50 at 112 px: 43.59 million parameters
    model = build_backbone(IResNetConfig(depth=50), 112, seed=0)
    assert sum(p.numel() for p in model.parameters()) == 43_590_848


@pytest.mark.parametrize("config", CONFIGS[:3:2], ids=lambda c: c.kind)
def test_crops_that_do_not_fit_are_refused(config: BackboneConfig) -> None:
    with pytest.raises(UserError, match="multiple of 16"):
        build_backbone(config, 100, seed=0)


def test_unknown_torchvision_name_suggests_one() -> None:
    with pytest.raises(UserError, match="did you mean 'resnet18'"):
        build_backbone(TorchvisionConfig(name="resnet81"), 64, seed=0)


def test_a_crop_too_small_for_a_torchvision_network_is_refused() -> None:
    with pytest.raises(UserError, match="cannot take crops of 16 px"):
        build_backbone(TorchvisionConfig(name="alexnet"), 16, seed=0)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's check of the heap")
@pytest.mark.parametrize("crop_px", [64, 112])
def test_small_networks_do_not_write_beyond_their_memory(crop_px: int) -> None:
    """With channels-last images a strided 1 × 1 convolution of 8 channels did; the heap's check ends the process."""
    program = f"""
import torch
from pipeline.config.backbones import IResNetConfig
from pipeline.model.backbones import build_backbone
torch.set_num_threads(1)
model = build_backbone(IResNetConfig(depth=18, width=0.125, embedding_dim=64), {crop_px}, 0).train()
images = torch.zeros(4, {crop_px}, {crop_px}, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
for _ in range(4):
    model(images).square().sum().backward()
print("sound")
"""
    environment = {**os.environ, "MALLOC_CHECK_": "3"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.stdout.strip() == "sound", done.stderr
