"""Beginning from earlier weights: what is taken from which file, what is left, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline import checkpoint_writer
from pipeline.config.backbones import BackboneConfig, IResNetConfig, TorchvisionConfig
from pipeline.config.errors import UserError
from pipeline.config.initial import InitConfig
from pipeline.engine.initial import Initial, open_initial
from pipeline.model.backbones import build_backbone
from tests.checkpoints import make_info

IRESNET = IResNetConfig(depth=18, width=0.125, embedding_dim=8)
RESNET = TorchvisionConfig(name="resnet18", embedding_dim=8)


def network(config: BackboneConfig = IRESNET, seed: int = 0) -> nn.Module:
    return build_backbone(config, 32, seed)


def write_checkpoint(directory: Path, tensors: Mapping[str, Tensor], label_map: str = "map") -> Path:
    info = make_info(7, label_map_sha256=label_map)
    return checkpoint_writer.save(directory, tensors, info, keep=1)


def prefixed(prefix: str, model: nn.Module) -> dict[str, Tensor]:
    return {prefix + name: t for name, t in model.state_dict().items()}


def begun(model: nn.Module, path: Path, **options: object) -> tuple[Initial, str]:
    initial = open_initial(InitConfig(path=path, **options), model, "map")  # type: ignore[arg-type]
    return initial, initial.fill_backbone(model)


def assert_equal(model: nn.Module, other: nn.Module, but: str = "none") -> None:
    theirs = other.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, theirs[name]) != name.startswith(but), name


def test_a_checkpoint_gives_its_backbone_and_not_its_head(tmp_path: Path) -> None:
    source, model = network(seed=1), network()
    path = write_checkpoint(tmp_path, prefixed("backbone/", source) | {"head/class_centres": torch.ones(3, 8)})
    _, line = begun(model, path)
    assert_equal(model, source)
    assert line == f"began from {path}, its weights: {len(source.state_dict())} tensors of the backbone taken"


def test_an_average_is_taken_where_there_is_one(tmp_path: Path) -> None:
    average, model = network(seed=2), network()
    path = write_checkpoint(tmp_path, prefixed("backbone/", network(seed=1)) | prefixed("ema/", average))
    _, line = begun(model, path)
    assert_equal(model, average)
    assert "the average of its weights" in line


@pytest.mark.parametrize("prefix", ["", "backbone.", "backbone/backbone."])
def test_safetensors_with_our_prefixes_or_none(tmp_path: Path, prefix: str) -> None:
    source, model = network(seed=1), network()
    tensors = {prefix + name.removeprefix("backbone."): t for name, t in source.state_dict().items()}
    save_file(tensors, tmp_path / "weights.safetensors")
    begun(model, tmp_path / "weights.safetensors")
    assert_equal(model, source)


def test_torchvision_weights_but_for_the_classifier(tmp_path: Path) -> None:
    source, model = network(RESNET, seed=1), network(RESNET)
    tensors = {name.removeprefix("backbone."): t for name, t in source.state_dict().items()}
    tensors = {name: t for name, t in tensors.items() if not name.startswith("fc.")}
    tensors |= {"fc.weight": torch.randn(1000, 512), "fc.bias": torch.randn(1000)}
    # the oldest files know no counters of batches
    tensors = {name: t for name, t in tensors.items() if not name.endswith("num_batches_tracked")}
    torch.save(tensors, tmp_path / "resnet18.pth")
    with pytest.raises(UserError) as caught:
        begun(model, tmp_path / "resnet18.pth")
    assert "does not fit the backbone: fc.bias has shape (1000,)" in str(caught.value)
    assert "init_from.leave=[PATTERN]" in str(caught.value)
    _, line = begun(model, tmp_path / "resnet18.pth", leave=("fc.*",))
    assert_equal(model, source, but="backbone.fc")
    assert "100 tensors of the backbone taken; left there: fc.bias, fc.weight; begun anew: bn1.num_batches" in line
    assert line.endswith(" and 18 more")


def test_differences_are_counted_and_the_first_are_named(tmp_path: Path) -> None:
    tensors = network(seed=1).state_dict()
    del tensors["backbone.neck.embed.weight"], tensors["backbone.neck.embed.bias"]
    tensors["backbone.extra"] = torch.ones(1)
    save_file(tensors, tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match=r"neck\.embed\.bias is missing, neck\.embed\.weight is missing and 1 more"):
        begun(network(), tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match=r"extra has no place in the backbone;"):
        begun(network(), tmp_path / "weights.safetensors", leave=("neck.embed.*",))
    _, line = begun(network(), tmp_path / "weights.safetensors", leave=("neck.embed.*", "extra"))
    assert line.endswith("left there: extra; begun anew: neck.embed.bias, neck.embed.weight")


def test_another_length_of_the_embedding_is_a_difference_in_shape(tmp_path: Path) -> None:
    save_file(network().state_dict(), tmp_path / "weights.safetensors")
    longer = network(IResNetConfig(depth=18, width=0.125, embedding_dim=16))
    with pytest.raises(UserError, match=r"neck\.embed\.bias has shape \(8,\), the backbone's \(16,\), "):
        begun(longer, tmp_path / "weights.safetensors")


def test_the_head_needs_the_same_people(tmp_path: Path) -> None:
    tensors = {"head/class_centres": torch.ones(3, 8), "head/margin.t": torch.ones(())}
    path = write_checkpoint(tmp_path, prefixed("backbone/", network(seed=1)) | tensors)
    initial, _ = begun(network(), path, parts="all")
    centres = {"head/class_centres": torch.zeros(3, 8)}
    assert initial.fill_head(centres) == "; 1 of the head; left there: margin.t"
    assert bool((centres["head/class_centres"] == 1).all())
    with pytest.raises(UserError, match="has shape"):
        initial.fill_head({"head/class_centres": torch.zeros(4, 8)})
    with pytest.raises(UserError, match="holds no 'head/bias'"):
        initial.fill_head({"head/bias": torch.zeros(4)})
    other = write_checkpoint(tmp_path / "other", prefixed("backbone/", network()) | tensors, label_map="another")
    with pytest.raises(UserError, match=r"init_from\.parts: all, but .* other people \(3 of them\).*extend_head"):
        begun(network(), other, parts="all")
    assert begun(network(), other)[0].fill_head(centres) == ""


class Unsafe:
    """An object, which only an unrestricted pickle would make."""


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    def refused(path: Path, **options: object) -> str:
        with pytest.raises(UserError) as caught:
            begun(network(), path, **options)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "no such file or directory" in refused(tmp_path / "nowhere")
    assert "no checkpoint in it" in refused(tmp_path)
    torch.save({"state_dict": Unsafe()}, tmp_path / "object.pth")
    assert "cannot be read weights-only" in refused(tmp_path / "object.pth")
    torch.save({"model": {"w": torch.ones(1)}, "epoch": 3}, tmp_path / "nested.pth")
    assert "holds a dict with model, epoch; expected a flat mapping" in refused(tmp_path / "nested.pth")
    for name in ("damaged.pth", "damaged.safetensors", "damaged.onnx"):
        (tmp_path / name).write_bytes(b"no weights at all")
        refused(tmp_path / name)
    save_file(network().state_dict(), tmp_path / "weights.safetensors")
    assert "'layer9.*' names no tensor of" in refused(tmp_path / "weights.safetensors", leave=("layer9.*",))
    assert "is no checkpoint" in refused(tmp_path / "weights.safetensors", parts="all")
