"""Which parameters rest at which epoch, what happens to them, and to the batch norms among them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.config.backbones import IResNetConfig
from pipeline.config.errors import UserError
from pipeline.config.load import validate_config
from pipeline.config.optim import AdamWConfig, FreezeRule, ThawConfig
from pipeline.engine.batch_norm import RunningStatistics
from pipeline.engine.ddp import DDPBackend
from pipeline.engine.freezing import Freezing, with_stages
from pipeline.model.backbones import build_backbone, build_without_memory

STAGES = ("stem.*", ("blocks.0.*", "blocks.1.*"), "blocks.[234567].*")


def network() -> nn.Module:
    return build_backbone(IResNetConfig(depth=18, width=0.125, embedding_dim=8), 32, seed=0)


def first_parts(names: frozenset[str]) -> set[str]:
    """`stem`, `blocks.3` and so on."""
    parts = (name.removeprefix("backbone.").split(".") for name in names)
    return {".".join(part[:2]) if part[0] == "blocks" else part[0] for part in parts}


def blocks(*numbers: int) -> set[str]:
    return {f"blocks.{number}" for number in numbers}


def test_rules_end_at_their_epoch_or_never() -> None:
    rules = (FreezeRule(pattern="stem.*"), FreezeRule(pattern="blocks.[01].*", until_epoch=1.5))
    freezing = Freezing(rules, None, network())
    assert first_parts(freezing.at(0)) == {"stem"} | blocks(0, 1)
    assert first_parts(freezing.at(1.49)) == {"stem"} | blocks(0, 1)
    assert first_parts(freezing.at(1.5)) == {"stem"}
    assert first_parts(freezing.at(1e9)) == {"stem"}
    assert "backbone.stem.0.weight" in freezing.at(0)


def test_stages_thaw_from_the_last_to_the_first() -> None:
    freezing = Freezing((), ThawConfig(stages=STAGES, every_epochs=2), network())
    assert first_parts(freezing.at(0)) == {"stem"} | blocks(*range(8))
    assert first_parts(freezing.at(2)) == {"stem"} | blocks(0, 1)
    assert first_parts(freezing.at(4)) == {"stem"}
    assert first_parts(freezing.at(6)) == set()


def test_the_networks_own_stages_are_written_into_the_configuration_but_for_the_last() -> None:
    config = validate_config(
        {
            "output": "run",
            "data": {"path": "d"},
            "training": {"epochs": 1, "global_batch": 2, "local_batch": 2},
            "backbone": {"kind": "iresnet", "depth": 18, "width": 0.125, "embedding_dim": 8},
            "thaw": {"every_epochs": 0.5},
        }
    )
    model = build_without_memory(config.backbone, 32)
    thaw = with_stages(config, model, 32).thaw
    assert thaw is not None
    assert thaw.stages == (
        *(("stem.*",), ("blocks.0.*", "blocks.1.*"), ("blocks.2.*", "blocks.3.*")),
        *(("blocks.4.*", "blocks.5.*"), ("blocks.6.*", "blocks.7.*")),
    )
    freezing = Freezing((), thaw, model)
    assert first_parts(freezing.at(0)) == {"stem"} | blocks(*range(8))
    assert first_parts(freezing.at(0.5)) == {"stem"} | blocks(*range(6))
    assert first_parts(freezing.at(2.0)) == {"stem"}
    assert first_parts(freezing.at(2.5)) == set()
    named = config.model_copy(update={"thaw": ThawConfig(stages=("stem.*",), every_epochs=1)})
    assert with_stages(named, model, 32) == named


def test_the_longer_of_two_rules_holds() -> None:
    rules = (FreezeRule(pattern="*", until_epoch=1), FreezeRule(pattern="stem.0.weight", until_epoch=3))
    freezing = Freezing(rules, None, network())
    assert freezing.at(2) == {"backbone.stem.0.weight"}
    assert freezing.num_trained(0) == 0
    assert "frozen, the last of them until epoch 3" in freezing.describe(0)
    assert Freezing((), None, network()).describe(0) == ""


@pytest.mark.parametrize(
    ("rules", "thaw", "key"),
    [
        ((FreezeRule(pattern="stem.*"), FreezeRule(pattern="layer1.*")), None, r"freeze\.1: 'layer1\.\*'"),
        ((), ThawConfig(stages=("stem.*", "layer1.*"), every_epochs=1), r"thaw\.stages\.1: 'layer1\.\*'"),
    ],
)
def test_a_pattern_for_nothing_is_a_mistake(rules: tuple[FreezeRule, ...], thaw: ThawConfig | None, key: str) -> None:
    with pytest.raises(UserError, match=key + r" names no parameter of the backbone; expected .* stem\.0\.weight to"):
        Freezing(rules, thaw, network())


def test_the_configuration_reads_both_forms() -> None:
    tree = {"output": "run", "data": {"path": "d"}, "training": {"epochs": 1, "global_batch": 2, "local_batch": 2}}
    config = validate_config(
        tree | {"freeze": [{"pattern": "a.*"}], "thaw": {"stages": ["a.*", ["b.*", "c.*"]], "every_epochs": 2}}
    )
    assert config.freeze == (FreezeRule(pattern="a.*"),)
    assert config.thaw == ThawConfig(stages=("a.*", ("b.*", "c.*")), every_epochs=2)
    with pytest.raises(UserError, match=r"freeze.0.untl_epoch: unknown key.*did you mean 'until_epoch'"):
        validate_config(tree | {"freeze": [{"pattern": "a.*", "untl_epoch": 2}]})


def test_what_rests_does_not_move_in_any_way_and_batch_norms_stand_still() -> None:
    model = network()
    backend = DDPBackend(model, AdamWConfig(lr=0.1, weight_decay=0.5), "fp32", torch.device("cpu"))
    backend.prime_optimizer()
    freezing = Freezing((FreezeRule(pattern="stem.*"), FreezeRule(pattern="blocks.[01].*")), None, model)
    statistics = RunningStatistics(model)
    freezing.hold_statistics(0)
    backend.freeze(freezing.at(0))

    def state() -> dict[str, torch.Tensor]:
        live = dict(model.state_dict()) | backend.optimizer_tensors()
        return {name: value.detach().clone() for name, value in live.items()}

    before = state()
    for _ in range(2):
        for _ in range(3):  # a mean of three equal values need not be that value
            with statistics.micro_batch(is_filler=False):
                backend.forward(torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)).square().sum().backward()
        statistics.finish_step(3)
        assert model.get_parameter("backbone.stem.0.weight").grad is None
        backend.step(0.1, backend.gradient_norm(), None)
    still = {name for name, value in state().items() if torch.equal(value, before[name])}
    at_rest = tuple(f"backbone.{part}." for part in ("stem", "blocks.0", "blocks.1"))
    for name in before:
        # the embedding's norm has no gain to train
        assert (name in still) == (name.startswith(at_rest) or name == "backbone.neck.embed_norm.weight"), name


def test_batch_norms_move_again_once_they_are_let_go() -> None:
    norm = nn.BatchNorm1d(3)
    freezing, statistics = Freezing((FreezeRule(pattern="*", until_epoch=1),), None, norm), RunningStatistics(norm)
    for epoch, has_moved in ((0.0, False), (1.0, True)):
        freezing.hold_statistics(epoch)
        with statistics.micro_batch(is_filler=False):
            norm(torch.randn(5, 3))
        statistics.finish_step(1)
        assert norm.num_batches_tracked == int(has_moved)
        assert bool(norm.running_mean.any()) == has_moved  # type: ignore[union-attr]


def test_a_norm_without_parameters_rests_when_its_running_mean_is_named() -> None:
    model = nn.ModuleDict({"layer": nn.Linear(3, 3), "norm": nn.BatchNorm1d(3, affine=False)})
    for pattern, rests in (("norm.*", True), ("layer.*", False)):
        Freezing((FreezeRule(pattern=pattern),), None, model).hold_statistics(0)
        assert model["norm"].training is not rests


def test_a_head_can_be_trained_on_a_network_that_rests_as_a_whole() -> None:
    model = network()
    backend = DDPBackend(model, AdamWConfig(), "fp32", torch.device("cpu"))
    backend.freeze(Freezing((FreezeRule(pattern="*"),), None, model).at(0))
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    embeddings = backend.forward(images)
    embeddings.sum().backward()
    assert embeddings.grad is not None
    assert backend.gradient_norm() == 0
    with torch.no_grad():
        assert not backend.forward(images).requires_grad
