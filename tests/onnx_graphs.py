"""Face models of a few ONNX nodes, whose embeddings NumPy gives by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

EMBEDDING_DIM = 6


def weights(num_values: int, seed: int = 1) -> np.ndarray:
    """[num_values, EMBEDDING_DIM] float32 of the one matrix."""
    return (np.random.default_rng(seed).standard_normal((num_values, EMBEDDING_DIM)) / 100).astype(np.float32)


def write_model(
    path: Path,
    shape: Sequence[int | str],
    *,
    num_values: int,
    nodes: Sequence[onnx.NodeProto] = (),
    begins_at: str = "input",
    constants: dict[str, np.ndarray] | None = None,
    dtype: int = TensorProto.FLOAT,
    outputs: Sequence[tuple[str, Sequence[int | str]]] = (("embedding", ("N", EMBEDDING_DIM)),),
    metadata: dict[str, str] | None = None,
) -> Path:
    """Write a model that multiplies all values of a photo with `weights(num_values)`.

    Args:
        path: the file.
        shape: of the input, which is called `input`.
        num_values: of a photo.
        nodes: what comes before, from `input` to `begins_at`.
        begins_at: what the matrix is multiplied with.
        constants: of `nodes`.
        dtype: of the input; others than float32 are cast before `nodes`, to `cast`.
        outputs: names and shapes.
        metadata: strings that the file carries.
    """
    stored = {**(constants or {}), "matrix": weights(num_values)}
    before = [] if dtype == TensorProto.FLOAT else [helper.make_node("Cast", ["input"], ["cast"], to=TensorProto.FLOAT)]
    if before and begins_at == "input":
        begins_at = "cast"
    after = [
        helper.make_node("Flatten", [begins_at], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "matrix"], ["embedding"]),
    ]
    graph = helper.make_graph(
        [*before, *nodes, *after],
        "face",
        [helper.make_tensor_value_info("input", dtype, list(shape))],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(size)) for name, size in outputs],
        [numpy_helper.from_array(value, name) for name, value in stored.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    for key, value in (metadata or {}).items():
        model.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return path
