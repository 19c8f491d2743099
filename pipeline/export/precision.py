"""Smaller ONNX files: weights and products in float16, or in int8 with ranges measured on crops.

Input and output stay what they are in float32 files, so that only the file's size and speed change for who uses it.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnx.compose
import onnx.utils

from pipeline.export.to_onnx import INPUT, OUTPUT, aligned_crops, alignment_nodes

QUANTISED_OPERATORS = ("Conv", "Gemm", "MatMul", "Add")
"""Products, and the sums that join residual branches; what is left between them stays in float32."""
_CALIBRATION_BATCH = 16


def to_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Weights and products in float16. A spatial transformer and what stands before it stay in float32: float16 would
    round places in a crop of 112 px by up to 0.03 px."""
    boundary = aligned_crops(model)
    if boundary is None:
        return _convert(model)
    # in two parts, for the converter rounds what passes between nodes that it leaves alone
    extractor = onnx.utils.Extractor(onnx.shape_inference.infer_shapes(model))
    front = extractor.extract_model([INPUT], [boundary])
    back = _convert(extractor.extract_model([boundary], [OUTPUT]))
    for part in (front, back):  # inferred shapes, of which both have some by the same name
        del part.graph.value_info[:]
    return onnx.compose.merge_models(front, back, io_map=[(boundary, boundary)])


def _convert(model: onnx.ModelProto) -> onnx.ModelProto:
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    converted: onnx.ModelProto = convert_float_to_float16(model, keep_io_types=True)
    OnnxModel(converted).topological_sort()  # it puts casts at the end
    return converted


def to_int8(model: onnx.ModelProto, inputs: npt.NDArray[np.generic]) -> onnx.ModelProto:
    """Weights in int8 by channel, of which 7 bits are used, and activations in int8 with the ranges that they have on
    some crops (static quantisation; pairs of QuantizeLinear and DequantizeLinear around each operator, which runtimes
    melt together).

    Args:
        model: in float32.
        inputs: [N, 3, H, W] as the model takes them.
    """
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Batches(CalibrationDataReader):
        def __init__(self) -> None:
            starts = range(0, len(inputs), _CALIBRATION_BATCH)
            self._batches: Iterator[npt.NDArray[np.generic]] = (inputs[i : i + _CALIBRATION_BATCH] for i in starts)

        def get_next(self) -> dict[str, npt.NDArray[np.generic]] | None:
            batch = next(self._batches, None)
            return None if batch is None else {INPUT: batch}

    with tempfile.TemporaryDirectory() as folder, _quiet_root_logger():
        prepared, quantised = Path(folder) / "prepared.onnx", Path(folder) / "quantised.onnx"
        # symbolic shapes are for networks whose batch is not the only free size
        quant_pre_process(model, str(prepared), skip_symbolic_shape=True)
        left_out = alignment_nodes(onnx.load(str(prepared)))
        quantize_static(
            str(prepared),
            str(quantised),
            Batches(),
            op_types_to_quantize=list(QUANTISED_OPERATORS),
            nodes_to_exclude=left_out,
            per_channel=True,
            # weights of 7 bits: sums of pairs overflow on processors without VNNI, and the file must act alike on all
            reduce_range=True,
        )
        return onnx.load(str(quantised))


@contextmanager
def _quiet_root_logger() -> Iterator[None]:
    """onnxruntime.quantization tells the root logger what it does."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
