"""SCRFD, InsightFace's detector, through ONNX Runtime. Weights by path.

J. Guo, J. Deng, A. Lattas, S. Zafeiriou, "Sample and Computation Redistribution for Efficient Face Detection", 2021.

Expected are the exports with landmarks: one input [B, 3, H, W], RGB scaled to (x - 127.5) / 128, and nine outputs:
scores [.., N, 1], box distances [.., N, 4] and landmark offsets [.., N, 10] for the strides 8, 16 and 32 each, in
this order, in units of the stride, with two anchors a cell. Older exports have no batch axis in their outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import onnxruntime

from pipeline.config.errors import UserError
from preprocess.detect import Face, file_sha256
from preprocess.detect.resize import to_faces
from preprocess.detect.suppress import suppress

Floats = npt.NDArray[np.float32]

_STRIDES = (8, 16, 32)
_ANCHORS = 2
_WIDTHS = (1, 4, 10)  # columns of scores, boxes, landmarks
_SCORE_THRESHOLD = 0.5
_NMS_THRESHOLD = 0.4
_FREE_SIDE_PX = 640  # of models that take any size
_GPU_BATCH = 16
_EXPECTED = "an SCRFD .onnx with landmarks: input [B, 3, H, W], nine outputs (scores, boxes, landmarks at 3 strides)"


class Scrfd:
    """See `preprocess.detect.Detector`. Runs on CUDA where ONNX Runtime has that provider, else on the CPU.

    Raises:
        UserError: the weights are missing, or are not an SCRFD model with landmarks.
    """

    def __init__(self, weights: Path) -> None:
        if not weights.is_file():
            raise UserError(weights, "no such file", "the weights of SCRFD (.onnx)")
        self.weights_sha256 = file_sha256(weights)
        self._session = _open(weights)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        shape = inputs[0].shape
        if len(inputs) != 1 or len(shape) != 4 or shape[1] != 3 or len(outputs) != 3 * len(_STRIDES):
            raise UserError(weights, _signature(self._session), _EXPECTED)
        self._input = inputs[0].name
        height, width = (side if isinstance(side, int) else _FREE_SIDE_PX for side in shape[2:])
        self._size = (width, height)
        self.max_side_px = max(width, height)
        has_batch = all(len(output.shape) == 3 for output in outputs)
        # measured on a CPU: the same bits and the same time an image, batched or not, in more memory
        on_gpu = "CUDAExecutionProvider" in self._session.get_providers()
        self.batch_size = _GPU_BATCH if on_gpu and has_batch and not isinstance(shape[0], int) else 1
        if height % _STRIDES[-1] or width % _STRIDES[-1]:
            raise UserError(weights, f"an input of {width} x {height} px", f"multiples of {_STRIDES[-1]} px")
        self._check_outputs(weights)

    def detect(self, images: Sequence[npt.NDArray[np.uint8]]) -> list[list[Face]]:
        faces: list[list[Face]] = []
        for start in range(0, len(images), self.batch_size):
            boxed = [letterbox(image, self._size) for image in images[start : start + self.batch_size]]
            # always of one shape: a GPU's library may choose another kernel, with other last bits, for another
            pixels = np.zeros((self.batch_size, self._size[1], self._size[0], 3), np.float32)
            pixels[: len(boxed)] = [canvas for canvas, _ in boxed]
            outputs = self._run((pixels.transpose(0, 3, 1, 2) - 127.5) / 128.0)
            for number, (_, scale) in enumerate(boxed):
                boxes, points, scores = decode([output[number] for output in outputs], self._size)
                kept = suppress(boxes, scores, _NMS_THRESHOLD)
                faces.append(to_faces(boxes[kept], points[kept], scores[kept], scale))
        return faces

    def _run(self, pixels: Floats) -> list[Floats]:
        """Nine outputs [B, N, columns]."""
        outputs = self._session.run(None, {self._input: np.ascontiguousarray(pixels, np.float32)})
        return [np.asarray(output, np.float32).reshape(len(pixels), -1, output.shape[-1]) for output in outputs]

    def _check_outputs(self, weights: Path) -> None:
        """A model of another family may have nine outputs too: look at the shapes of a black image's."""
        width, height = self._size
        expected = [
            (1, (height // stride) * (width // stride) * _ANCHORS, columns)
            for columns in _WIDTHS
            for stride in _STRIDES
        ]
        try:
            found = [output.shape for output in self._run(np.zeros((1, 3, height, width), np.float32))]
        except (onnxruntime.capi.onnxruntime_pybind11_state.OnnxRuntimeException, RuntimeError, ValueError, IndexError):
            raise UserError(weights, f"does not run ({_signature(self._session)})", _EXPECTED) from None
        if found != expected:
            raise UserError(weights, f"outputs {_shapes(found)}", f"{_shapes(expected)}, an SCRFD with landmarks")


def letterbox(image: npt.NDArray[np.uint8], size: tuple[int, int]) -> tuple[npt.NDArray[np.uint8], float]:
    """The image [H, W, 3] scaled to fit into `size` (width, height), black below and to the right; and the scale."""
    height, width = image.shape[:2]
    fit = min(size[0] / width, size[1] / height)
    scaled = (max(1, min(size[0], int(width * fit))), max(1, min(size[1], int(height * fit))))
    canvas = np.zeros((size[1], size[0], 3), np.uint8)
    canvas[: scaled[1], : scaled[0]] = cv2.resize(image, scaled, interpolation=cv2.INTER_LINEAR)
    return canvas, fit


def decode(outputs: Sequence[Floats], size: tuple[int, int]) -> tuple[Floats, Floats, Floats]:
    """Candidates above the threshold: boxes [M, 4] and landmarks [M, 5, 2] in px of the network's input, scores [M].

    Args:
        outputs: nine [N, columns] of one image, see the module.
        size: width and height of the network's input.
    """
    parts: list[tuple[Floats, Floats, Floats]] = []
    for level, stride in enumerate(_STRIDES):
        scores = outputs[level][:, 0]
        sure = np.flatnonzero(scores >= _SCORE_THRESHOLD)
        cell = sure // _ANCHORS
        columns = size[0] // stride
        centre = (np.stack([cell % columns, cell // columns], 1) * stride).astype(np.float32)
        distances = outputs[level + 3][sure] * np.float32(stride)
        offsets = outputs[level + 6][sure].reshape(-1, 5, 2) * np.float32(stride)
        boxes = np.hstack([centre - distances[:, :2], centre + distances[:, 2:]])
        whole = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)  # a box inside out has no area to compare in `suppress`
        parts.append((boxes[whole], (centre[:, None] + offsets)[whole], scores[sure][whole]))
    boxes, points, scores = (np.concatenate(column) for column in zip(*parts, strict=True))
    return boxes, points, scores


def _open(weights: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # the workers are processes
    options.log_severity_level = 4  # what goes wrong is told by exceptions
    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    available = onnxruntime.get_available_providers()
    try:
        return onnxruntime.InferenceSession(
            str(weights), options, providers=[name for name in wanted if name in available]
        )
    except Exception as error:  # ONNX Runtime's errors share no base class
        raise UserError(weights, f"is no ONNX model ({type(error).__name__})", _EXPECTED) from None


def _signature(session: onnxruntime.InferenceSession) -> str:
    inputs, outputs = session.get_inputs(), session.get_outputs()
    return f"inputs {_named(inputs)}, {len(outputs)} outputs {_named(outputs)}"


def _named(values: Sequence[Any]) -> str:
    return ", ".join(f"{value.name} {value.shape}" for value in values)


def _shapes(shapes: Sequence[tuple[int, ...]]) -> str:
    return ", ".join("x".join(map(str, shape)) for shape in shapes)
