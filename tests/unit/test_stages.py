"""The stages that are found in a network: whole, in the order of the forward pass, cut where its maps shrink."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pipeline.config.backbones import BackboneConfig, TimmConfig, TorchvisionConfig
from pipeline.model.backbones import build_backbone, build_without_memory
from pipeline.model.backbones.build import FaceModel
from pipeline.model.backbones.stages import find_stages
from tests.backbones import HAS_TIMM, SMALL, every_small_one, usual_crop_px


def stages_of(config: BackboneConfig, crop_px: int = 64) -> list[str]:
    """Each stage in a line, names without the network's own."""
    stages = find_stages(build_without_memory(config, crop_px), crop_px)
    return [" ".join(name.removeprefix("backbone.") for name in stage) for stage in stages]


def parameters_of(model: FaceModel, stage: list[str]) -> list[tuple[str, nn.Parameter]]:
    return [
        (name, parameter)
        for name, parameter in model.named_parameters()
        if any(f"{name}.".startswith(f"{owner}.") for owner in stage)
    ]


@every_small_one()
def test_every_parameter_is_in_one_stage_and_the_embedding_in_the_last(config: BackboneConfig) -> None:
    crop_px = usual_crop_px(config)
    model = build_without_memory(config, crop_px)
    stages = find_stages(model, crop_px)
    assert len(stages) > 3
    found = [[name for name, _ in parameters_of(model, stage)] for stage in stages]
    assert sorted(name for stage in found for name in stage) == sorted(name for name, _ in model.named_parameters())
    *_, embedding = (name for name, parameter in model.named_parameters() if len(parameter) == config.embedding_dim)
    assert embedding in found[-1]
    assert model.training


@every_small_one()
def test_no_stage_hears_of_a_later_one(config: BackboneConfig) -> None:
    """What a stage gives out does not change with the weights of the stages after it, and does with its own."""
    crop_px = usual_crop_px(config)
    stages = find_stages(build_without_memory(config, crop_px), crop_px)
    model = build_backbone(config, crop_px, seed=0).eval()
    images = torch.randint(0, 256, (2, 3, crop_px, crop_px), dtype=torch.uint8)
    given: dict[str, Tensor] = {}

    def watch(name: str) -> None:
        model.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output: given.update({name: output.detach().clone()})
        )

    for name in {name for stage in stages for name in stage} - {name for name, _ in model.named_parameters()}:
        watch(name)
    with torch.no_grad():
        model(images)
        for number in range(1, len(stages)):
            before = dict(given)
            for _, parameter in parameters_of(model, stages[number]):
                parameter.mul_(1.01).add_(0.01)
            model(images)
            moved = {name for name, output in given.items() if not torch.equal(output, before[name])}
            assert moved.isdisjoint(name for stage in stages[:number] for name in stage)
            assert moved & set(stages[number])


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("iresnet18", ["stem", "blocks.0 blocks.1", "blocks.2 blocks.3", "blocks.4 blocks.5", "blocks.6 blocks.7"]),
        ("sphereface20", ["stages.0", "stages.1", "stages.2", "stages.3"]),
        ("torchvision-resnet18", ["conv1 bn1", "layer1", "layer2", "layer3", "layer4"]),
        ("vit", ["positions patches", *(f"blocks.{n}" for n in range(11)), "blocks.11 norm"]),
    ],
)
def test_stages_end_where_maps_shrink_and_each_block_of_a_transformer_is_one(name: str, stages: list[str]) -> None:
    assert stages_of(SMALL[name])[:-1] == stages


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("vgg11", "classifier"),
        ("inception_v3", "fc"),
        ("convnext_tiny", "classifier"),
        ("regnet_y_400mf", "fc"),
        ("swin_t", "head"),
        ("densenet121", "classifier"),
    ],
)
def test_torchvisions_classifiers_have_five_or_six_stages(name: str, last: str) -> None:
    found = stages_of(TorchvisionConfig(name=name, embedding_dim=32), 112)
    assert len(found) in (5, 6)
    assert found[-1] == last


@pytest.mark.skipif(not HAS_TIMM, reason="timm is not installed")
@pytest.mark.parametrize(
    ("name", "num_stages"), [("regnetx_002", 6), ("convnext_atto", 5), ("dla34", 7), ("mixer_s32_224", 10)]
)
def test_timms_networks_are_looked_into(name: str, num_stages: int) -> None:
    found = stages_of(TimmConfig(name=name, embedding_dim=32), 64)
    assert len(found) == num_stages
    assert found[-1].endswith("neck")
