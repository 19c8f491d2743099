"""Exported files run as their users run them, on the bytes that are going to be written."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.config.errors import UserError
from pipeline.evaluate.embed import Embedder, EmbedFn
from pipeline.export.to_onnx import INPUT
from pipeline.input_spec import InputSpec, network_input

_CPU = torch.device("cpu")


def onnx_embedder(content: bytes, spec: InputSpec, where: Path) -> Embedder:
    """An ONNX file in onnxruntime, on as many threads as torch has.

    Raises:
        UserError: onnxruntime cannot run it; later, when it embeds: embeddings that are not finite.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common class
        reason = str(error).splitlines()[0]
        raise UserError(where, f"not written, onnxruntime cannot run it ({reason})", "", "another --opset") from None

    def embed(images: Tensor) -> Tensor:
        (vectors,) = session.run(None, {INPUT: network_input(images.numpy(), spec)})
        return torch.from_numpy(_finite(vectors, where))

    return Embedder(embed, spec.height_px, _CPU, str(where))


def program_embedder(content: bytes, spec: InputSpec, where: Path) -> Embedder:
    """A torch.export program, loaded as its users load it."""
    run: EmbedFn = torch.export.load(io.BytesIO(content)).module()

    def embed(images: Tensor) -> Tensor:
        return run(torch.from_numpy(network_input(images.numpy(), spec)))

    return Embedder(embed, spec.height_px, _CPU, str(where))


def _finite(vectors: np.ndarray, where: Path) -> np.ndarray:
    if not np.isfinite(vectors).all():
        found = "not written, its embeddings are not finite: values of the network are beyond this precision"
        raise UserError(where, found, "", "a larger --precision, or an earlier checkpoint")
    return vectors
