"""Backbones: shapes, equal starts, gradients everywhere, weights that load back, and refusals."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from pipeline import checkpoint
from pipeline.config.backbones import (
    BackboneConfig,
    InceptionResNetV1Config,
    IResNetConfig,
    MobileFaceNetConfig,
    NeckKind,
    SphereFaceConfig,
    TimmConfig,
    TorchvisionConfig,
    ViTConfig,
)
from pipeline.config.errors import UserError
from pipeline.interop.arcface_torch import ImportedBackbone
from pipeline.interop.imported import save_for_evaluation
from pipeline.model.backbones import FaceModel, build_backbone, build_without_memory
from pipeline.model.backbones.inception_resnet_v1 import MIN_CROP_PX
from pipeline.model.backbones.neck import Neck
from tests.backbones import DIM, as_loaded, every_small_one, usual_crop_px

TEMPLATE = [20.0, 30.0, 44.0, 30.0, 32.0, 40.0, 24.0, 50.0, 40.0, 50.0]


def photos(number: int, crop_px: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return as_loaded(torch.randint(0, 256, (number, 3, crop_px, crop_px), dtype=torch.uint8, generator=generator))


def num_parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@every_small_one()
@pytest.mark.parametrize("crop_px", [64, 112])
def test_uint8_crops_become_float_embeddings(config: BackboneConfig, crop_px: int) -> None:
    if config.kind == "inception_resnet_v1" and crop_px < MIN_CROP_PX:
        pytest.skip("refused, as another test shows")
    embeddings = build_backbone(config, crop_px, seed=0)(photos(3, crop_px))
    assert embeddings.shape == (3, DIM)
    assert embeddings.dtype == torch.float32
    assert embeddings.isfinite().all()


@every_small_one()
def test_gradients_reach_every_parameter_in_its_layout(config: BackboneConfig) -> None:
    """DDP fails over parameters without a gradient, and warns of, and copies, gradients laid out in another way."""
    model = build_backbone(config, usual_crop_px(config), seed=0).to(memory_format=torch.channels_last)
    images = photos(4, usual_crop_px(config))
    target = torch.randn(4, DIM, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():  # a last layer that begins at zero lets nothing through to the others
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.01, generator=generator)
    model(images).mul(target).sum().backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert [name for name, p in trained.items() if p.grad is None or not p.grad.any()] == []
    assert [name for name, p in trained.items() if p.grad is not None and p.grad.stride() != p.stride()] == []


@every_small_one()
def test_a_network_without_memory_has_the_same_names_and_shapes(config: BackboneConfig) -> None:
    real, empty = (
        build(config, usual_crop_px(config)) for build in (partial(build_backbone, seed=0), build_without_memory)
    )
    assert [(name, t.shape, t.dtype) for name, t in empty.state_dict().items()] == [
        (name, t.shape, t.dtype) for name, t in real.state_dict().items()
    ]
    assert [p.requires_grad for p in empty.parameters()] == [p.requires_grad for p in real.parameters()]
    assert all(tensor.is_meta for tensor in empty.state_dict().values())


@every_small_one()
def test_a_small_step_lowers_the_loss(config: BackboneConfig) -> None:
    model = build_backbone(config, usual_crop_px(config), seed=0)
    images, labels = photos(8, usual_crop_px(config)), torch.arange(8) // 2
    centres = functional.normalize(torch.randn(4, DIM, generator=torch.Generator().manual_seed(1)))

    def loss() -> torch.Tensor:
        torch.manual_seed(7)  # the same masks before and after
        return functional.cross_entropy(16 * functional.normalize(model(images)) @ centres.T, labels)

    before = loss()
    before.backward()
    gradients = [(p, p.grad) for p in model.parameters() if p.grad is not None]
    squared = sum(gradient.square().sum() for _, gradient in gradients)
    with torch.no_grad():
        for parameter, gradient in gradients:
            parameter -= 1e-3 * gradient / squared**0.5
        after = loss()
    assert after < before - 0.2 * 1e-3 * squared**0.5


@every_small_one()
def test_weights_load_back_from_a_checkpoint(config: BackboneConfig, tmp_path: Path) -> None:
    crop_px = usual_crop_px(config)
    model = build_backbone(config, crop_px, seed=3)
    if model.alignment is not None:
        torch.nn.init.normal_(model.alignment.change.weight)
    for _ in range(2):
        model(photos(4, crop_px))  # moves the running statistics
    imported = ImportedBackbone(config, crop_px, model.state_dict())  # type: ignore[arg-type]
    save_for_evaluation(tmp_path / "run", imported, TEMPLATE, {})
    loaded = checkpoint.load_backbone(tmp_path / "run", torch.device("cpu")).module
    images = photos(2, crop_px, seed=1)
    with torch.no_grad():
        assert torch.equal(loaded(images), model.eval()(images))


@every_small_one("torchvision-resnet18", "torchvision-squeezenet")
def test_initial_weights_follow_the_seed_and_leave_the_global_generator_alone(config: BackboneConfig) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, again, other = (build_backbone(config, usual_crop_px(config), seed) for seed in (3, 3, 4))
    assert torch.equal(before, torch.get_rng_state())
    weights = [model.state_dict() for model in (first, again, other)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert not all(torch.equal(value, weights[2][name]) for name, value in weights[0].items())


@pytest.mark.parametrize(
    ("config", "crop_px", "published"),
    [
        # InsightFace's arcface_torch; 43.59, 65.16 million stand in the tables of many papers, e.g. arXiv:2107.13046
        (IResNetConfig(depth=18), 112, 24_025_600),
        (IResNetConfig(depth=34), 112, 34_139_328),
        (IResNetConfig(depth=50), 112, 43_590_848),
        (IResNetConfig(depth=100), 112, 65_156_160),
        (IResNetConfig(depth=200), 112, 118_833_920),
        # FaceNet's public model, without its classifier: 23.48 of the 27.91 million that it has with 8,631 people
        (InceptionResNetV1Config(), 160, 27_910_327 - 8_631 * 512 - 8_631),
        # table 1 of the MobileFaceNet paper, which stops at 128 numbers: 0.99 million without the last norm
        (MobileFaceNetConfig(embedding_dim=128), 112, 1_003_136),
    ],
    ids=lambda value: str(value.kind) if hasattr(value, "kind") else str(value),
)
def test_networks_have_the_published_number_of_parameters(config: BackboneConfig, crop_px: int, published: int) -> None:
    model = build_without_memory(config, crop_px)
    assert num_parameters(model) == published


def test_sphereface_has_the_layers_of_its_paper() -> None:
    # table 2 of arXiv:1704.08063 at 112 × 112: its weights, counted by hand; PReLU's slopes and biases on top
    convolutions = 3 * 64 + 2 * 64**2 + 64 * 128 + 4 * 128**2 + 128 * 256 + 8 * 256**2 + 256 * 512 + 2 * 512**2
    slopes = 3 * 64 + 5 * 128 + 9 * 256 + 3 * 512
    biases = 64 + 128 + 256 + 512 + 512
    model = build_without_memory(SphereFaceConfig(), 112)
    assert num_parameters(model) == 9 * convolutions + slopes + biases + 512 * 49 * 512
    assert sum(isinstance(m, torch.nn.Conv2d) for m in model.modules()) == 20


def test_squeeze_and_excitation_adds_two_matrices_a_block() -> None:
    plain, se = (build_without_memory(IResNetConfig(depth=50, se=value), 112) for value in (False, True))
    added = sum(num_blocks * 2 * c * c // 16 for num_blocks, c in ((3, 64), (4, 128), (14, 256), (3, 512)))
    assert num_parameters(se) - num_parameters(plain) == added


@pytest.mark.parametrize("dim", [64, 128, 256, 512, 1024])
@pytest.mark.parametrize(
    ("kind", "others"),
    [("bn_dropout_fc_bn", 2 * 24), ("dropout_fc_bn", 0), ("fc_bn_fc_bn", 24 * 24 * 4 + 2 * 24), ("linear", 0)],
)
def test_necks_give_every_size_of_embedding(kind: NeckKind, others: int, dim: int) -> None:
    neck = Neck(kind, 24, (2, 2), dim, norm_eps=1e-5)
    assert neck(torch.randn(3, 24, 2, 2)).shape == (3, dim)
    inputs = 24 if kind == "fc_bn_fc_bn" else 24 * 4
    last = {"linear": dim, "bn_dropout_fc_bn": 3 * dim}.get(kind, 2 * dim)
    assert num_parameters(neck) == others + inputs * dim + last


def test_a_neck_takes_maps_of_one_place_tokens_and_vectors() -> None:
    for shape, places in (((3, 8, 1, 1), (1, 1)), ((3, 8, 5), (5,)), ((3, 8), ())):
        assert Neck("bn_dropout_fc_bn", 8, places, 16)(torch.randn(shape)).shape == (3, 16)


@pytest.mark.parametrize("kind", ["iresnet", "mobilefacenet", "sphereface20"])
def test_crops_that_do_not_divide_are_refused(kind: str) -> None:
    sections = (IResNetConfig(), MobileFaceNetConfig(), SphereFaceConfig())
    config = next(section for section in sections if section.kind == kind)
    with pytest.raises(UserError, match=f"{kind} cannot take crops of 100 px; expected a multiple of 16"):
        build_backbone(config, 100, seed=0)


def test_crops_that_are_too_small_are_refused() -> None:
    inception = InceptionResNetV1Config(width=0.125)
    with pytest.raises(UserError, match="cannot take crops of 64 px; expected 75 px or more"):
        build_backbone(inception, 64, seed=0)
    images = photos(2, MIN_CROP_PX)
    assert build_backbone(inception, MIN_CROP_PX, seed=0)(images).shape == (2, 512)
    with pytest.raises(UserError, match="vit with patches of 16 px cannot take crops of 8 px; expected 16 px or more"):
        build_backbone(ViTConfig(patch_px=16), 8, seed=0)


def test_unknown_torchvision_name_suggests_one() -> None:
    with pytest.raises(UserError, match="did you mean 'resnet18'"):
        build_backbone(TorchvisionConfig(name="resnet81"), 64, seed=0)


def test_a_crop_too_small_for_a_torchvision_network_is_refused() -> None:
    with pytest.raises(UserError, match="cannot take crops of 16 px"):
        build_backbone(TorchvisionConfig(name="alexnet"), 16, seed=0)


def test_a_network_that_ends_in_a_convolution_has_a_linear_neck() -> None:
    with pytest.raises(UserError, match=r"backbone\.neck: 'squeezenet1_1' ends in a convolution; expected linear"):
        build_backbone(TorchvisionConfig(name="squeezenet1_1", neck="bn_dropout_fc_bn"), 64, seed=0)


def test_mistakes_with_timm_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm")
    with pytest.raises(UserError, match="timm has no model 'resnet81'"):
        build_backbone(TimmConfig(name="resnet81"), 64, seed=0)
    with pytest.raises(UserError, match=r"test_vit cannot (be built for|take) crops of 8 px"):
        build_backbone(TimmConfig(name="test_vit"), 8, seed=0)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match="timm is not installed; expected another kind of backbone; pip install timm"):
        build_backbone(TimmConfig(name="resnet18"), 64, seed=0)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's check of the heap")
def test_small_networks_do_not_write_beyond_their_memory() -> None:
    """With channels-last images a strided 1 × 1 convolution of 8 channels did; the heap's check ends the process."""
    names = [("iresnet18", 112), ("iresnet18-se", 64), ("iresnet18-aligned", 64), ("sphereface20", 64)]
    names += [("mobilefacenet", 64), ("inception", 80), ("vit-masked", 64), ("timm-resnet", 64)]
    program = f"""
import torch
from pipeline.model.backbones import build_backbone
from tests.backbones import HAS_TIMM, SMALL
torch.set_num_threads(1)
for name, crop_px in {names}:
    if SMALL[name].kind == "timm" and not HAS_TIMM:
        continue
    print(name, crop_px, flush=True)
    images = torch.zeros(3, crop_px, crop_px, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    model = build_backbone(SMALL[name], crop_px, 0).train().to(memory_format=torch.channels_last)
    for _ in range(2):
        model(images).square().sum().backward()
print("sound")
"""
    environment = {**os.environ, "MALLOC_CHECK_": "3"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.stdout.strip().endswith("sound"), done.stdout + done.stderr


def test_a_face_model_without_alignment_has_no_trace_of_it() -> None:
    model = build_backbone(IResNetConfig(depth=18, width=0.125), 64, seed=0)
    assert isinstance(model, FaceModel)
    assert not any(name.startswith("alignment") for name in model.state_dict())
