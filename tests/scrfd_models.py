"""Small ONNX networks with SCRFD's signature, whose outputs depend on the image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

STRIDES = (8, 16, 32)


def write_model(path: Path, *, side: int | None, has_batch: bool, widths: tuple[int, ...] = (1, 4, 10)) -> Path:
    """Means over each cell, then one linear layer per output, seeded: scores about 0 to 1, offsets a few cells.

    Args:
        path: where it is written.
        side: height and width of the input in px; None for any.
        has_batch: whether outputs have a batch axis, and the input any batch size.
        widths: columns of scores, boxes and landmarks.
    """
    rng = np.random.default_rng(5)
    nodes, tensors, outputs = [], [], []
    batch, sides = ("B" if has_batch else 1), ([side, side] if side else ["H", "W"])
    for columns in widths:
        for stride in STRIDES:
            name = f"out{columns}_{stride}"
            kernel = rng.normal(0, 1.5, (2 * columns, 3, 1, 1)).astype(np.float32)
            bias = rng.uniform(0.5, 2.5, 2 * columns).astype(np.float32)
            shape = np.array([0, -1, columns] if has_batch else [-1, columns], np.int64)
            tensors += [
                numpy_helper.from_array(array, f"{name}_{kind}")
                for kind, array in (("k", kernel), ("b", bias), ("s", shape))
            ]
            last = f"{name}_logit" if columns == widths[0] else name
            nodes += [
                helper.make_node("AveragePool", ["x"], [f"{name}_p"], kernel_shape=[stride] * 2, strides=[stride] * 2),
                helper.make_node("Conv", [f"{name}_p", f"{name}_k", f"{name}_b"], [f"{name}_c"]),
                helper.make_node("Transpose", [f"{name}_c"], [f"{name}_t"], perm=[0, 2, 3, 1]),
                helper.make_node("Reshape", [f"{name}_t", f"{name}_s"], [last]),
            ]
            if last != name:
                nodes.append(helper.make_node("Sigmoid", [last], [name]))
            dims = [batch, None, columns] if has_batch else [None, columns]
            outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, dims))
    graph = helper.make_graph(
        nodes, "scrfd", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, *sides])], outputs, tensors
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(path))
    return path
