"""Beginning from ONNX files: the same embeddings from the network's own weights, a refusal of folded ones."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from pipeline.config.backbones import BackboneConfig, IResNetConfig, TorchvisionConfig, ViTConfig
from pipeline.config.errors import UserError
from pipeline.config.initial import InitConfig
from pipeline.engine.initial import open_initial
from pipeline.interop.arcface_torch import read_backbone
from pipeline.interop.imported import evaluation_model
from pipeline.model.backbones import build_backbone
from pipeline.model.backbones.build import FaceModel
from pipeline.onnx_weights import onnx_shapes
from tests.arcface_torch_reference import scaled, trained_looking
from tests.onnx_files import export

CROP_PX = 32
IRESNET = IResNetConfig(depth=18, width=0.125, embedding_dim=8)
CROPS = torch.randint(0, 256, (4, 3, CROP_PX, CROP_PX), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def trained(config: BackboneConfig) -> FaceModel:
    """A network no two parts of whose state are alike, but for two that are: such weights are stored once."""
    model = build_backbone(config, CROP_PX, seed=1)
    generator = torch.Generator().manual_seed(2)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms[2:]:
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            assert tensor is not None
            tensor.data.add_(torch.rand(tensor.shape, generator=generator))
    return model.eval()


def begun(config: BackboneConfig, path: Path, *leave: str) -> FaceModel:
    model = build_backbone(config, CROP_PX, seed=0)
    open_initial(InitConfig(path=path, leave=leave), model, "map").fill_backbone(model)
    return model.eval()


@pytest.mark.parametrize(
    "config",
    [
        IRESNET,
        TorchvisionConfig(name="resnet18", embedding_dim=8),
        ViTConfig(size="tiny", width=0.125, embedding_dim=8, neck="linear"),
    ],
    ids=lambda config: config.kind,
)
@pytest.mark.parametrize("is_whole", [False, True], ids=["network", "with normalisation"])
def test_an_exported_network_gives_the_same_embeddings(tmp_path: Path, config: BackboneConfig, is_whole: bool) -> None:
    source = trained(config)
    example = CROPS if is_whole else scaled(CROPS)
    export(source if is_whole else source.backbone, example, tmp_path / "model.onnx", keeps_batch_norms=True)
    with torch.no_grad():
        expected, found = source(CROPS), begun(config, tmp_path / "model.onnx")(CROPS)
    assert (expected[0] - expected[1]).abs().max() > 1e-3 * expected.abs().max(), "the comparison would say nothing"
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_weights_beside_the_file_are_found(tmp_path: Path) -> None:
    source = trained(IRESNET)
    export(source.backbone, scaled(CROPS), tmp_path / "model.onnx", keeps_batch_norms=True)
    model = onnx.load(str(tmp_path / "model.onnx"))
    onnx.save(model, str(tmp_path / "split.onnx"), save_as_external_data=True, location="split.bin", size_threshold=0)
    with torch.no_grad():
        assert torch.equal(begun(IRESNET, tmp_path / "split.onnx")(CROPS), source(CROPS))
    (tmp_path / "split.bin").unlink()
    with pytest.raises(UserError, match=r"split\.onnx: cannot be read \("):
        begun(IRESNET, tmp_path / "split.onnx")


def test_folded_batch_norms_are_refused_in_one_line(tmp_path: Path) -> None:
    export(trained(IRESNET).backbone, scaled(CROPS), tmp_path / "model.onnx", keeps_batch_norms=False)
    with pytest.raises(UserError) as caught:
        begun(IRESNET, tmp_path / "model.onnx")
    assert "\n" not in str(caught.value)
    assert "'onnx::Conv_" in str(caught.value)
    assert "folds batch norms into convolutions" in str(caught.value)
    assert "TrainingMode.PRESERVE" in str(caught.value)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    export(trained(IRESNET).backbone, scaled(CROPS), path, keeps_batch_norms=True)
    with pytest.raises(UserError, match=r"does not fit the backbone: .*neck\.embed\.weight has shape \(8, "):
        begun(IResNetConfig(depth=18, width=0.125, embedding_dim=16), path)
    begun(IResNetConfig(depth=18, width=0.125, embedding_dim=16), path, "neck.*")
    empty = onnx.helper.make_graph([], "empty", [], [])
    onnx.save(onnx.helper.make_model(empty), str(path))
    with pytest.raises(UserError, match="holds no weights"):
        onnx_shapes(path)
    with pytest.raises(UserError, match="cannot be read"):
        onnx_shapes(tmp_path)


def test_a_network_of_arcface_torch_is_imported(tmp_path: Path) -> None:
    reference = trained_looking(18, seed=0, embedding_dim=16)
    crops = torch.randint(0, 256, (3, 3, 112, 112), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    export(reference, scaled(crops), tmp_path / "backbone.onnx", keeps_batch_norms=True)
    with torch.no_grad():
        expected, ours = reference(scaled(crops)), evaluation_model(read_backbone(tmp_path / "backbone.onnx"))(crops)
    assert (ours - expected).abs().max() < 1e-5 * expected.std()
