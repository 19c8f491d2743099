"""Recomputed and compiled backbones compute what plain ones do."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from pipeline.config.backbones import (
    BackboneConfig,
    IResNetConfig,
    MobileFaceNetConfig,
    SphereFaceConfig,
    TorchvisionConfig,
    ViTConfig,
)
from pipeline.config.errors import UserError
from pipeline.config.heads import MarginSoftmaxConfig
from pipeline.config.optim import SGDConfig
from pipeline.data.loader import MicroBatch, StepBatch
from pipeline.engine import network
from pipeline.engine.batch_norm import RunningStatistics
from pipeline.engine.ddp import DDPBackend
from pipeline.engine.gradients import GradientPass
from pipeline.engine.network import recompute_blocks
from pipeline.model.backbones import build_backbone
from pipeline.model.head import build_head

CROP_PX, LOCAL_BATCH, NUM_CLASSES = 32, 4, 5


def step_batch() -> StepBatch:
    generator = torch.Generator().manual_seed(1)
    size = (LOCAL_BATCH, 3, CROP_PX, CROP_PX)
    micros = [
        MicroBatch(
            images=torch.randint(0, 256, size, dtype=torch.uint8, generator=generator),
            labels=torch.randint(0, NUM_CLASSES, (LOCAL_BATCH,), generator=generator),
            sample_ids=torch.arange(LOCAL_BATCH),
            valid=torch.ones(LOCAL_BATCH, dtype=torch.bool),
            position=LOCAL_BATCH * number,
            is_filler=False,
        )
        for number in range(2)
    ]
    return StepBatch(0, micros, 2, 0, 0.0, [])


def pass_over(model: nn.Module, compiles: bool = False, precision: str = "fp32") -> tuple[Tensor, dict[str, Tensor]]:
    """A step's loss; the backbone's gradients and buffers after it."""
    backend = DDPBackend(model, SGDConfig(), precision, torch.device("cpu"), compiles)  # type: ignore[arg-type]
    head = build_head(MarginSoftmaxConfig(), NUM_CLASSES, 16, seed=0)
    statistics = RunningStatistics(model)
    step = GradientPass(backend, statistics, head, None, seed=3)
    loss, _ = step.backward(step_batch(), torch.full((2,), float(LOCAL_BATCH)), 0, 0.0)
    statistics.finish_step(2)
    left = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return loss, left | {name: buffer.clone() for name, buffer in model.named_buffers()}


BACKBONES: list[tuple[BackboneConfig, int]] = [
    (IResNetConfig(depth=18, width=0.125, embedding_dim=16, dropout=0.4), 8),
    (MobileFaceNetConfig(width=0.125, embedding_dim=16), 15),
    (TorchvisionConfig(name="resnet18", embedding_dim=16), 8),
    (SphereFaceConfig(width=0.125, embedding_dim=16, neck="bn_dropout_fc_bn"), 4),
    (ViTConfig(size="tiny", width=0.125, embedding_dim=16, mask_share=0.3, drop_path=0.3), 12),
]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("config", "num_blocks"), BACKBONES, ids=lambda value: getattr(value, "kind", ""))
def test_recomputing_changes_no_bit(config: BackboneConfig, num_blocks: int, precision: str) -> None:
    plain = build_backbone(config, CROP_PX, seed=0)
    recomputed = copy.deepcopy(plain)
    names = list(recomputed.state_dict())
    assert recompute_blocks(recomputed) == num_blocks
    assert list(recomputed.state_dict()) == names
    (loss, left), (expected_loss, expected) = (
        pass_over(recomputed, precision=precision),
        pass_over(plain, precision=precision),
    )
    assert torch.equal(loss, expected_loss)
    assert left.keys() == expected.keys()
    assert [name for name, value in expected.items() if not torch.equal(left[name], value)] == []
    assert any(name.endswith("num_batches_tracked") for name in left)


def test_recomputing_keeps_fewer_activations() -> None:
    sizes = []
    for is_recomputed in (False, True):
        model = build_backbone(BACKBONES[0][0], CROP_PX, seed=0)
        if is_recomputed:
            recompute_blocks(model)
        kept: dict[int, int] = {}

        def keep(tensor: Tensor, kept: dict[int, int] = kept) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            embeddings = model(torch.zeros(LOCAL_BATCH, 3, CROP_PX, CROP_PX, dtype=torch.uint8))
        sizes.append(sum(kept.values()))
        embeddings.sum().backward()
    assert sizes[1] < 0.6 * sizes[0]


def test_a_copy_of_a_recomputed_backbone_is_its_own() -> None:
    model = build_backbone(BACKBONES[0][0], CROP_PX, seed=0)
    recompute_blocks(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    images = torch.zeros(LOCAL_BATCH, 3, CROP_PX, CROP_PX, dtype=torch.uint8)
    assert not other(images).any()
    assert model(images).any()


def test_a_backbone_without_blocks_is_told() -> None:
    with pytest.raises(UserError, match="activation_checkpointing: this backbone has no blocks"):
        recompute_blocks(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()))


class Tiny(nn.Module):
    """Crops to [B, 16], with all that compiling could get wrong: statistics, dropout, a layout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=4, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.dropout = nn.Dropout(0.4)
        self.embed = nn.Linear(4 * 8 * 8, 16)

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.conv(images.float().div(255)))
        return self.embed(self.dropout(x).flatten(1))


class Undecided(Tiny):
    """What torch cannot compile as a whole: the way depends on a value."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) if images.float().sum() > 0 else super().forward(images + 1)


def test_a_compiled_backbone_trains_as_a_plain_one() -> None:
    torch.manual_seed(0)
    plain = Tiny()
    compiled = copy.deepcopy(plain)
    (loss, left), (expected_loss, expected) = pass_over(compiled, compiles=True), pass_over(plain)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-6, atol=0)
    assert left.keys() == expected.keys()
    for name, value in expected.items():
        assert (left[name].double() - value.double()).norm() <= 1e-5 * value.double().norm(), name


def test_what_cannot_be_compiled_whole_is_an_error() -> None:
    with pytest.raises(UserError, match=r"training.compile: torch cannot compile the backbone .*; set it to false"):
        pass_over(Undecided(), compiles=True)


def test_tf32_is_for_the_backbone_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The switches are process-wide; here they are moved without a GPU, and are to be back afterwards."""
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = (matmul.fp32_precision, conv.fp32_precision)
    for precision, expected in (("tf32", "tf32"), ("fp32", "ieee"), ("bf16", "ieee")):
        seen = network.Network(nn.Identity(), precision, torch.device("cuda"), compiles=False)  # type: ignore[arg-type]
        with seen.products():
            assert (matmul.fp32_precision, conv.fp32_precision) == (expected, expected)
        assert (matmul.fp32_precision, conv.fp32_precision) == before
