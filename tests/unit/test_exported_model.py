"""Exported files embed as the model they were made from, whatever the backbone, and say what they take."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor

from pipeline.config.backbones import BackboneConfig, TorchvisionConfig
from pipeline.config.errors import UserError
from pipeline.evaluate.embed import Embedder
from pipeline.export.description import Description
from pipeline.export.network import OnnxAlignment
from pipeline.export.precision import to_float16, to_int8
from pipeline.export.running import onnx_embedder, program_embedder
from pipeline.export.to_onnx import float_model, serialise
from pipeline.export.to_program import program_bytes
from pipeline.input_spec import InputSpec, network_input, parse_input_spec
from pipeline.model.backbones import FaceModel, build_backbone
from tests.backbones import DIM, SMALL, every_small_one, usual_crop_px

FILE = Path("model.onnx")
# of each kind one will do
TWINS = {name for name in SMALL if name.startswith(("sphereface20-bn", "vit-", "torchvision-", "timm-r", "iresnet50"))}
TWINS -= {"torchvision-mobilenet"}


def trained(config: BackboneConfig, size_px: int) -> tuple[FaceModel, Tensor]:
    """A model with running statistics, which moves crops where it aligns them, and crops [5, 3, S, S] uint8."""
    torch.manual_seed(0)
    model = build_backbone(config, size_px, seed=0)
    crops = torch.randint(0, 256, (5, 3, size_px, size_px), dtype=torch.uint8)
    if model.alignment is not None:
        torch.nn.init.normal_(model.alignment.change.weight, std=0.02)
    with torch.no_grad():
        model.train()(crops)
    return model.eval(), crops


def described(config: BackboneConfig, size_px: int, dtype: str = "float32") -> Description:
    spec = InputSpec.model_validate({"height_px": size_px, "width_px": size_px, "dtype": dtype})
    return Description(spec, DIM, config.model_dump(mode="json"), "raw", 7, 70, [("train", "d1")], "CC0")


def distance(model: FaceModel, exported: Embedder, crops: Tensor) -> float:
    """The greatest 1 − cosine over batches of one and of all."""
    with torch.no_grad():
        pairs = [(model(batch).double(), exported.embed(batch).double()) for batch in (crops[:1], crops)]
    return max(float((1 - torch.nn.functional.cosine_similarity(*pair)).max()) for pair in pairs)


@every_small_one(*TWINS)
def test_onnx_embeds_as_the_model(config: BackboneConfig) -> None:
    size_px = usual_crop_px(config)
    model, crops = trained(config, size_px)
    description = described(config, size_px)
    content = serialise(float_model(model, description, 17), description.metadata())
    onnx.checker.check_model(content, full_check=True)
    assert distance(model, onnx_embedder(content, description.input, FILE), crops) < 1e-9


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
@pytest.mark.parametrize("name", ["iresnet18-se", "iresnet18-aligned"])
def test_smaller_precisions_stay_near_and_keep_input_and_output(name: str, dtype: str) -> None:
    model, crops = trained(SMALL[name], 64)
    description = described(SMALL[name], 64, dtype)
    single = float_model(model, description, 17)
    size = len(serialise(single, {}))
    inputs = network_input(crops.numpy(), description.input)
    for bound, share, smaller in ((1e-5, 0.65, to_float16(single)), (0.05, 0.5, to_int8(single, inputs))):
        content = serialise(smaller, description.metadata())
        onnx.checker.check_model(content, full_check=True)
        assert distance(model, onnx_embedder(content, description.input, FILE), crops) < bound
        assert len(content) < share * size
        elements = [value.type.tensor_type.elem_type for value in (*smaller.graph.input, *smaller.graph.output)]
        wanted = onnx.TensorProto.UINT8 if dtype == "uint8" else onnx.TensorProto.FLOAT
        assert elements == [wanted, onnx.TensorProto.FLOAT]


def test_a_program_embeds_as_the_model() -> None:
    name = "sphereface20"
    model, crops = trained(SMALL[name], 64)
    description = described(SMALL[name], 64)
    content = program_bytes(model, description)
    assert distance(model, program_embedder(content, description.input, FILE), crops) < 1e-9
    inside = {"facemill.input": ""}
    with io.BytesIO(content) as file:
        torch.export.load(file, extra_files=inside)
    assert parse_input_spec(inside["facemill.input"], "program") == description.input


def test_metadata_says_what_the_file_takes() -> None:
    config = SMALL["mobilefacenet"]
    model, _ = trained(config, 32)
    description = described(config, 32)
    stored = onnx.load_from_string(
        serialise(float_model(model, description, 13), description.metadata(precision="fp32"))
    )
    assert stored.opset_import[0].version == 13
    found = {entry.key: entry.value for entry in stored.metadata_props}
    assert parse_input_spec(found["facemill.input"], "file") == description.input
    assert json.loads(found["facemill.trained_on"]) == [["train", "d1"]]
    assert {
        key.removeprefix("facemill."): found[key] for key in found if "input" not in key and "backbone" not in key
    } == {
        "embedding_dim": str(DIM),
        "weights": "raw",
        "step": "7",
        "samples": "70",
        "trained_on": '[["train", "d1"]]',
        "licence": "CC0",
        "precision": "fp32",
    }


@pytest.mark.parametrize("size_px", [32, 48, 112])
def test_alignment_in_onnx_operators_equals_the_trained_one(size_px: int) -> None:
    model, crops = trained(SMALL["iresnet18-aligned"], size_px)
    assert model.alignment is not None
    pixels = crops.float().sub(127.5).div(127.5)
    with torch.no_grad():
        wanted = model.alignment(pixels)
        found = OnnxAlignment(model.alignment, size_px).eval()(pixels)
    assert not torch.allclose(wanted, pixels, atol=0.1)  # it does move them
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


def test_what_onnx_cannot_hold_is_refused_in_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    aligned = SMALL["iresnet18-aligned"]
    with pytest.raises(UserError, match=r"--opset: opset 15 has no operator for the spatial transformer.*16 or later"):
        float_model(trained(aligned, 32)[0], described(aligned, 32), 15)
    pooled = TorchvisionConfig(name="alexnet", embedding_dim=DIM)
    model = build_backbone(pooled, 64, seed=0).eval()
    with pytest.raises(UserError, match=r"--onnx: alexnet with crops of 64 px cannot .* adaptive_avg_pool2d") as caught:
        float_model(model, described(pooled, 64), 17)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().out == ""


def test_embeddings_that_are_not_finite_are_refused() -> None:
    config = SMALL["sphereface20"]
    model, crops = trained(config, 32)
    with torch.no_grad():
        next(parameter for parameter in model.parameters() if parameter.ndim == 4).fill_(float("nan"))
    description = described(config, 32)
    exported = onnx_embedder(serialise(float_model(model, description, 17), {}), description.input, FILE)
    with pytest.raises(UserError, match=r"model.onnx: not written, its embeddings are not finite"):
        exported.embed(crops)


def test_pixels_become_numbers_as_in_the_model() -> None:
    pixels = np.array([0, 127, 255], np.uint8).reshape(1, 3, 1, 1)
    spec = InputSpec(height_px=1, width_px=1)
    np.testing.assert_allclose(network_input(pixels, spec).ravel(), [-1.0, -0.5 / 127.5, 1.0], rtol=1e-6)
    assert network_input(pixels, spec.model_copy(update={"dtype": "uint8"})).dtype == np.uint8
