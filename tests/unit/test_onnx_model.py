"""ONNX files as models: what they take, told, detected or assumed, and what they are refused for."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from pipeline.config.errors import UserError
from pipeline.evaluate.recogniser import Recogniser
from pipeline.input_spec import METADATA_KEY
from pipeline.inputs.embedded_dataset import model_digest
from pipeline.inputs.models import open_model
from preprocess.align import template
from tests.onnx_graphs import EMBEDDING_DIM, weights, write_model

CPU = torch.device("cpu")


def random_crops(count: int, size_px: int) -> np.ndarray:
    """[B, S, S, 3] uint8 RGB."""
    return np.random.default_rng(3).integers(0, 256, (count, size_px, size_px, 3)).astype(np.uint8)


def embed(recogniser: Recogniser, crops: np.ndarray) -> np.ndarray:
    return recogniser.embedder.embed(torch.from_numpy(crops).permute(0, 3, 1, 2)).numpy()


def open_onnx(path: Path, declared: str | None = None) -> Recogniser:
    return open_model(str(path), CPU, declared=declared)


def node(kind: str, inputs: Sequence[str], output: str) -> onnx.NodeProto:
    return helper.make_node(kind, list(inputs), [output])


def by_hand(crops: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """24 x 24 px, NHWC, BGR."""
    rows = []
    for crop in crops:
        bgr = np.stack([crop[..., 2], crop[..., 1], crop[..., 0]], axis=-1).astype(np.float64)
        rows.append(((bgr - np.array(mean)) / np.array(std)).reshape(-1) @ weights(24 * 24 * 3).astype(np.float64))
    return np.array(rows)


OWN = {"height_px": 24, "width_px": 24, "layout": "NHWC", "colour": "BGR", "mean": [104, 117, 123], "std": [50, 60, 70]}


@pytest.mark.parametrize("is_described", [True, False])
def test_another_size_layout_colour_and_normalisation(tmp_path: Path, is_described: bool) -> None:
    metadata = {METADATA_KEY: json.dumps(OWN)} if is_described else {}
    path = write_model(tmp_path / "m.onnx", ("N", 24, 24, 3), num_values=24 * 24 * 3, metadata=metadata)
    found = open_onnx(path, None if is_described else "colour=bgr mean=104,117,123 std=50,60,70")
    crops = random_crops(5, 24)
    np.testing.assert_allclose(embed(found, crops), by_hand(crops, (104, 117, 123), (50, 60, 70)), rtol=1e-4, atol=1e-5)
    assert found.notes == []
    assert found.embedder.crop_px == 24
    told = found.description
    assert (told.kind, told.embedding_dim, told.num_parameters) == ("onnx", EMBEDDING_DIM, 24 * 24 * 3 * EMBEDDING_DIM)
    assert told.input is not None
    assert (told.input.layout, told.input.colour, told.input.dtype) == ("NHWC", "BGR", "float32")
    assert (told.step, told.config, told.dataset) == (None, None, None)


def test_what_is_declared_counts_more_than_what_the_file_says(tmp_path: Path) -> None:
    metadata = {METADATA_KEY: json.dumps({**OWN, "colour": "RGB"})}
    path = write_model(tmp_path / "m.onnx", ("N", 24, 24, 3), num_values=24 * 24 * 3, metadata=metadata)
    crops = random_crops(2, 24)
    expected = by_hand(crops, (104, 117, 123), (50, 60, 70))
    np.testing.assert_allclose(embed(open_onnx(path, "colour=BGR"), crops), expected, rtol=1e-4, atol=1e-5)
    assert not np.allclose(embed(open_onnx(path), crops), expected, atol=1e-3)


def test_what_is_assumed_stands_in_the_notes(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.onnx", ("N", 3, 20, 20), num_values=1200)
    found = open_onnx(path)
    assert found.notes == [
        "m.onnx does not say what it takes; assumed: RGB, pixels (x − 127.5) / 127.5. --input says otherwise."
    ]
    crops = random_crops(2, 20)
    pixels = (crops.transpose(0, 3, 1, 2).astype(np.float64) - 127.5) / 127.5
    np.testing.assert_allclose(embed(found, crops), pixels.reshape(2, -1) @ weights(1200), rtol=1e-4, atol=1e-5)
    assert open_onnx(path, "colour=RGB").notes == [
        "m.onnx does not say what it takes; assumed: pixels (x − 127.5) / 127.5. --input says otherwise."
    ]


def test_a_network_that_begins_with_sub_and_mul_gets_plain_pixels(tmp_path: Path) -> None:
    constants = {"centre": np.float32(100), "scale": np.array([[[0.5]], [[0.25]], [[2]]], np.float32)}
    nodes = [node("Sub", ["input", "centre"], "a"), node("Mul", ["scale", "a"], "b")]
    path = write_model(
        tmp_path / "m.onnx",
        ("N", 3, 20, 20),
        num_values=1200,
        nodes=nodes,
        begins_at="b",
        constants=constants,
    )
    found = open_onnx(path)
    assert found.notes[0].startswith(
        "m.onnx does not say what it takes; assumed: RGB, pixels of 0 to 255, as it begins with Sub and Mul."
    )
    crops = random_crops(2, 20)
    pixels = (crops.transpose(0, 3, 1, 2).astype(np.float64) - 100) * constants["scale"]
    np.testing.assert_allclose(embed(found, crops), pixels.reshape(2, -1) @ weights(1200), rtol=1e-4, atol=1e-4)


def test_arithmetic_without_constants_is_no_normalisation(tmp_path: Path) -> None:
    path = write_model(
        tmp_path / "m.onnx",
        ("N", 3, 20, 20),
        num_values=1200,
        nodes=[node("Sigmoid", ["input"], "a"), node("Mul", ["input", "a"], "b")],
        begins_at="b",
    )
    assert "(x − 127.5) / 127.5" in open_onnx(path).notes[0]


@pytest.mark.parametrize("size", [(28, 24), (24, 28)])
def test_one_that_is_not_square_gets_the_centre_of_a_square_crop(tmp_path: Path, size: tuple[int, int]) -> None:
    height, width = size
    path = write_model(tmp_path / "m.onnx", ("N", 3, height, width), num_values=3 * 28 * 24)
    found = open_onnx(path)
    assert found.embedder.crop_px == 28
    crops = random_crops(2, 28)
    centre = crops[:, :, 2:26] if width == 24 else crops[:, 2:26]
    pixels = (centre.transpose(0, 3, 1, 2).astype(np.float64) - 127.5) / 127.5
    np.testing.assert_allclose(embed(found, crops), pixels.reshape(2, -1) @ weights(2016), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_fixed_batch_is_run_as_often_as_it_takes(tmp_path: Path, batch: int) -> None:
    free = write_model(tmp_path / "free.onnx", ("N", 3, 20, 20), num_values=1200)
    fixed = write_model(
        tmp_path / "fixed.onnx", (batch, 3, 20, 20), num_values=1200, outputs=[("embedding", (batch, EMBEDDING_DIM))]
    )
    crops = random_crops(5, 20)
    np.testing.assert_allclose(embed(open_onnx(fixed), crops), embed(open_onnx(free), crops), rtol=1e-5, atol=1e-6)


def test_a_batch_of_nothing_is_refused_in_one_line(tmp_path: Path) -> None:
    model = onnx.load(str(write_model(tmp_path / "m.onnx", ("N", 3, 20, 20), num_values=1200)))
    for value, shape in ((model.graph.input[0], [0, 3, 20, 20]), (model.graph.output[0], [0, EMBEDDING_DIM])):
        value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.FLOAT, shape))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match=r"m\.onnx: ONNX Runtime fails on float32 \[3, 3, 20, 20\]"):
        open_onnx(tmp_path / "m.onnx")


def with_weights_in_constants(folder: Path, seed: int, is_in_subgraph: bool) -> Path:
    """The matrix stands in a file beside, and belongs to a Constant node and not to the initializers."""
    matrix = helper.make_tensor("matrix", TensorProto.FLOAT, (1200, 6), weights(1200, seed).tobytes(), raw=True)
    constant = helper.make_node("Constant", [], ["matrix"], value=matrix)
    nodes = [helper.make_node("Flatten", ["input"], ["flat"], axis=1), constant]
    nodes.append(node("MatMul", ["flat", "matrix"], "embedding"))
    found = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", 6])
    initializers = []
    if is_in_subgraph:
        inside = [*nodes[1:2], node("MatMul", ["flat", "matrix"], "inside")]
        output = helper.make_tensor_value_info("inside", TensorProto.FLOAT, ["N", 6])
        branches = {name: helper.make_graph(inside, name, [], [output]) for name in ("then_branch", "else_branch")}
        nodes = [nodes[0], helper.make_node("If", ["is_so"], ["embedding"], **branches)]
        initializers = [helper.make_tensor("is_so", TensorProto.BOOL, [], [True])]
    entry = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, 20, 20])
    graph = helper.make_graph(nodes, "face", [entry], [found], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    folder.mkdir()
    options = {"save_as_external_data": True, "location": "weights.bin", "convert_attribute": True}
    onnx.save_model(model, str(folder / "m.onnx"), **options)
    assert (folder / "weights.bin").stat().st_size >= 1200 * 6 * 4
    return folder / "m.onnx"


@pytest.mark.parametrize("is_in_subgraph", [False, True])
def test_weights_outside_the_file_count_wherever_they_belong(tmp_path: Path, is_in_subgraph: bool) -> None:
    found = [
        open_onnx(with_weights_in_constants(tmp_path / str(seed), seed, is_in_subgraph)).description for seed in (1, 2)
    ]
    assert (tmp_path / "1" / "m.onnx").read_bytes() == (tmp_path / "2" / "m.onnx").read_bytes()
    assert found[0].sha256 != found[1].sha256
    assert found[0].num_parameters == (2 if is_in_subgraph else 1) * 1200 * 6


def test_types_of_the_input(tmp_path: Path) -> None:
    crops = random_crops(2, 20)
    plain = crops.transpose(0, 3, 1, 2).astype(np.float64)
    for dtype, pixels in ((TensorProto.UINT8, plain), (TensorProto.FLOAT16, (plain - 127.5) / 127.5)):
        path = write_model(tmp_path / "m.onnx", ("N", 3, 20, 20), num_values=1200, dtype=dtype)
        np.testing.assert_allclose(
            embed(open_onnx(path), crops), pixels.reshape(2, -1) @ weights(1200), rtol=1e-3, atol=1e-2
        )
    assert open_onnx(write_model(tmp_path / "m.onnx", ("N", 3, 20, 20), num_values=1200, dtype=TensorProto.UINT8)).notes


def test_a_free_size_and_layout_are_what_is_declared(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.onnx", ("N", "C", "H", "W"), num_values=3 * 20 * 16)
    with pytest.raises(UserError, match=r"its layout cannot be told .*\[\?, \?, \?, \?\].*--input layout="):
        open_onnx(path)
    with pytest.raises(UserError, match=r"\[\?, \?, \?, \?\] has no fixed size; .*--input size=112"):
        open_onnx(path, "layout=NCHW")
    assert open_onnx(path, "layout=NCHW size=20x16").description.input.width_px == 16  # type: ignore[union-attr]


def test_one_output_of_several_is_named(tmp_path: Path) -> None:
    twice = [node("Add", ["embedding", "embedding"], "sum")]
    path = write_model(tmp_path / "m.onnx", ("N", 3, 20, 20), num_values=1200)
    model = onnx.load(str(path))
    model.graph.node.extend(twice)
    model.graph.output.append(helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["N", EMBEDDING_DIM]))
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match=r"2 outputs \(embedding, sum\), of which 2 are .*--input output=NAME"):
        open_onnx(path)
    with pytest.raises(UserError, match=r"--input: output=x, and .*m.onnx has embedding, sum"):
        open_onnx(path, "output=x")
    crops = random_crops(2, 20)
    models = [open_onnx(path, f"output={name}") for name in ("embedding", "sum")]
    assert [model.description.output for model in models] == ["embedding", "sum"]
    assert model_digest(models[0]) != model_digest(models[1])  # parts of one are not finished with the other
    found = [embed(model, crops) for model in models]
    np.testing.assert_allclose(found[1], 2 * found[0], rtol=1e-6)


def test_our_template_is_known_and_others_are_refused(tmp_path: Path) -> None:
    def write(points: np.ndarray) -> Path:
        own = {"height_px": 112, "width_px": 96, "template": points.ravel().tolist()}
        metadata = {METADATA_KEY: json.dumps(own), "facemill.trained_on": '[["train", "abc"]]'}
        return write_model(tmp_path / "m.onnx", ("N", 3, 112, 96), num_values=3 * 112 * 96, metadata=metadata)

    # the older template of 112 x 96 px: ArcFace's, eight columns to the left
    older = np.array(
        [(30.2946, 51.6963), (65.5318, 51.5014), (48.0252, 71.7366), (33.5493, 92.3655), (62.7299, 92.2041)]
    )
    assert open_onnx(write(older)).trained_on == [("train", "abc")]
    with pytest.raises(UserError, match="its photos are aligned to another template; expected ArcFace's"):
        open_onnx(write(template(112)))


def test_files_that_cannot_be_used_are_named_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("not a network\n" * 20)
    (tmp_path / "empty.onnx").write_bytes(b"")
    number = iter(range(100))

    def model(shape: Sequence[int | str] = ("N", 3, 20, 20), num_values: int = 1200, **options: object) -> Path:
        return write_model(tmp_path / f"m{next(number)}.onnx", shape, num_values=num_values, **options)  # type: ignore[arg-type]

    of_batch = [helper.make_node("ReduceMean", ["input"], ["mean"], axes=[0]), node("Sub", ["input", "mean"], "a")]
    two_inputs = onnx.load(str(model()))
    two_inputs.graph.input.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, [1]))
    (tmp_path / "two.onnx").write_bytes(two_inputs.SerializeToString())
    own = json.dumps({"height_px": 24, "width_px": 24})
    for path, declared, message in (
        (tmp_path / "none.onnx", None, "none.onnx: no such file"),
        (tmp_path / "text.onnx", None, r"text.onnx: (not an ONNX file|ONNX Runtime cannot open it)"),
        (tmp_path / "empty.onnx", None, "empty.onnx: not an ONNX file"),
        (tmp_path / "two.onnx", None, r"two.onnx: 2 inputs \(input, other\)"),
        (
            model(("N", 1200)),
            None,
            r"its input input is tensor\(float\) \[\?, 1200\]; expected float32, float16 or uint8",
        ),
        (model(("N", 1, 20, 60)), "layout=NCHW", r"\[\?, 1, 20, 60\] has 1 channels in NCHW"),
        (model(("N", 3, 4, 4), 48), None, r"an input of 4x4 px; expected sides of 16 to 1024 px"),
        (model(), "size=24", r"its input is \[\?, 3, 20, 20\] in NCHW; expected 24x24 px, as --input says"),
        (model(metadata={METADATA_KEY: own}), None, "expected 24x24 px, as facemill.input says"),
        (model(metadata={METADATA_KEY: "{}"}), None, "its input's description is wrong: height_px"),
        (
            model(metadata={METADATA_KEY: own.replace("24}", '24, "mean": [NaN, 1, 1]}')}),
            None,
            "wrong: mean.0: .* finite",
        ),
        (model(metadata={METADATA_KEY: own.replace("24}", '24, "std": [1, 1, Infinity]}')}), None, "wrong: std.2"),
        (model(metadata={METADATA_KEY: own.replace("24}", '24, "template": [NaN]}')}), None, "wrong: template.0"),
        (model(metadata={"facemill.trained_on": '{"ab": 1}'}), None, "its facemill.trained_on cannot be read"),
        (model(dtype=TensorProto.UINT8), "mean=0 std=1", "--input: mean= and std= given with .*, which takes uint8"),
        (model(num_values=1300), None, r"ONNX Runtime cannot open it \(Fail: .*MatMul"),
        (model(("N", 3, "H", "W")), "size=24", r"ONNX Runtime fails on float32 \[3, 3, 24, 24\]"),
        (
            model(nodes=of_batch, begins_at="a"),
            None,
            "the embedding of a photo changes with the other photos of its batch",
        ),
        (model(outputs=[("flat", ("N", 1200)), ("embedding", ("N", 6))]), "size=20 output=nothing", "--input: output="),
    ):
        with pytest.raises(UserError, match=message) as caught:
            open_onnx(path, declared)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("size=ab", "an input of 0x0 px"),
        ("size=8", "an input of 8x8 px; expected sides of 16 to 1024 px"),
        ("size=20 size=20", "size= is given twice"),
        ("layout=HWC", "'layout=HWC'; expected layout=NCHW or NHWC"),
        ("colour=grey", "'colour=grey'; expected colour=RGB or BGR"),
        ("mean=1", "one of mean= and std="),
        ("mean=1,2 std=1", "mean=1,2; expected one number or three"),
        ("mean=nan std=1", "mean=nan"),
        ("mean=1 std=0", "std=0; expected .* above 0"),
        ("112", "'112'; expected words like size=112"),
        ("dtype=uint8", "'dtype=uint8'; expected words like"),
    ],
)
def test_declarations_that_mean_nothing_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = write_model(tmp_path / "m.onnx", ("N", 3, 20, 20), num_values=1200)
    with pytest.raises(UserError, match=f"--input: {message}"):
        open_onnx(path, text)


def test_options_of_other_kinds_are_refused(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.onnx", ("N", 3, 20, 20), num_values=1200)
    with pytest.raises(UserError, match=r"--model-weights: given with .*m\.onnx; expected a run"):
        open_model(str(path), CPU, "raw")
    with pytest.raises(UserError, match=re.escape(f"--input: given with {tmp_path}; expected an ONNX file")):
        open_model(str(tmp_path), CPU, declared="size=20")
