"""What a backbone costs: as published, as counted on real tensors, and as the allocator sees it."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.config.backbones import BackboneConfig, IResNetConfig, SphereFaceConfig, ViTConfig
from pipeline.config.errors import UserError
from pipeline.engine import measure_step
from pipeline.engine.measure_step import StepRequest
from pipeline.model.backbones import build_backbone
from pipeline.model.backbones.cost import backbone_cost
from tests.backbones import SMALL, every_small_one, usual_crop_px


@pytest.mark.parametrize(
    ("config", "published"),
    [
        # the table "ViT For Face Recognition" in the README of InsightFace's arcface_torch, billions at 112 px
        (IResNetConfig(depth=18), 2.6),
        (IResNetConfig(depth=50), 6.3),
        (IResNetConfig(depth=100), 12.1),
        (IResNetConfig(depth=200), 23.5),
        (ViTConfig(size="tiny"), 1.5),
        (ViTConfig(size="small"), 5.7),
        (ViTConfig(size="base"), 11.4),
        (ViTConfig(size="large"), 25.3),
    ],
    ids=lambda value: (
        f"{value.kind}-{getattr(value, 'depth', getattr(value, 'size', ''))}" if hasattr(value, "kind") else ""
    ),
)
def test_multiply_adds_are_the_published_ones(config: BackboneConfig, published: float) -> None:
    assert backbone_cost(config, 112).multiply_adds / 1e9 == pytest.approx(published, abs=0.1)


@every_small_one("torchvision-mobilenet", "vit-masked", "vit-bn", "vit", "timm-vit")
def test_multiply_adds_are_those_of_a_run(config: BackboneConfig) -> None:
    crop_px = usual_crop_px(config)
    model = build_backbone(config, crop_px, seed=0).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, crop_px, crop_px, dtype=torch.uint8))
    cost = backbone_cost(config, crop_px)
    assert cost.multiply_adds == counter.get_total_flops() // 2
    assert cost.num_parameters == sum(p.numel() for p in model.parameters())


def test_attention_is_counted() -> None:
    patches, dim, blocks = 49, 32, 12
    products = patches * blocks * 12 * dim**2 + blocks * 2 * patches**2 * dim
    others = patches * dim * 3 * 9**2 + patches * dim * dim + dim * 32
    config = ViTConfig(size="tiny", width=0.125, embedding_dim=32)
    assert backbone_cost(config, 64).multiply_adds == products + others


@pytest.mark.parametrize("name", ["iresnet18-aligned", "vit-masked", "sphereface20"])
def test_activations_are_what_the_allocator_sees(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure_step, "keep_freed_memory", lambda: None)  # it would change this process for good
    local_batch, crop_px = 8, 64
    tree = {
        "output": "unused",
        "data": {"path": "unused"},
        "backbone": SMALL[name].model_dump(),
        "training": {"epochs": 1, "global_batch": local_batch, "local_batch": local_batch},
    }
    request = StepRequest(
        config=tree, num_rows=50, num_queries=local_batch, crop_px=crop_px, holds_activations=True, accumulates=False
    )
    measured = measure_step.measure(request).activation_bytes
    assert local_batch * backbone_cost(SMALL[name], crop_px).activation_bytes == pytest.approx(measured, rel=0.02)


def test_what_is_left_out_of_a_step_is_not_remembered() -> None:
    whole, masked = (backbone_cost(ViTConfig(size="tiny", mask_share=share), 112) for share in (0.0, 0.5))
    assert masked.multiply_adds == whole.multiply_adds  # in evaluation all patches are seen
    assert masked.activation_bytes < 0.6 * whole.activation_bytes


def test_mistakes_are_those_of_building() -> None:
    with pytest.raises(UserError, match="cannot take crops of 100 px"):
        backbone_cost(SphereFaceConfig(), 100)
