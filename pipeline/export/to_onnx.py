"""A model as an ONNX file with a free batch size.

torch's newer exporter needs onnxscript and writes opset 18 or newer only; the one that traces needs nothing and writes
what older runtimes read. What tracing may get wrong, sizes that are taken for constants, `pipeline.export.parity` would
see: it runs batches of other sizes than the traced one.
"""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import onnx
import torch
from torch import nn

from pipeline.config.errors import UserError
from pipeline.export.description import Description
from pipeline.export.network import ExportedNetwork, OnnxAlignment
from pipeline.model.backbones import FaceModel

DEFAULT_OPSET = 17
LEAST_OPSET = 13
"""Quantisation by channel needs it."""
LARGEST_OPSET = 20
"""torch's tracing exporter knows no later one."""
ALIGNMENT_OPSET = 16
"""The first with GridSample."""
INPUT = "input"
OUTPUT = "embedding"
_MAX_BYTES = 2**31 - 2**20
"""Of one protocol buffer, names and graph set aside."""


def float_model(model: FaceModel, description: Description, opset: int) -> onnx.ModelProto:
    """A model in float32, batch norms folded; its input is called `input`, its output `embedding`, batches are free.

    Args:
        model: the trained model, on the CPU.
        description: says which input the file takes.
        opset: the version of ONNX's operators.

    Raises:
        UserError: an operator of the network does not exist in that version, or the weights do not fit into a file.
    """
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    if num_bytes > _MAX_BYTES:
        raise UserError("--onnx", f"{num_bytes / 1e9:.1f} GB of weights", "at most 2 GB in a file", "take --program")
    size_px = description.input.height_px
    alignment = None
    if model.alignment is not None:
        if opset < ALIGNMENT_OPSET:
            found = f"opset {opset} has no operator for the spatial transformer of backbone.alignment"
            raise UserError("--opset", found, f"{ALIGNMENT_OPSET} or later")
        alignment = OnnxAlignment(model.alignment, size_px).eval()
    network = ExportedNetwork(model, description.input.dtype == "uint8", alignment)
    example = torch.zeros((2, 3, size_px, size_px), dtype=getattr(torch, description.input.dtype))
    try:
        return onnx.load_from_string(_trace(network, example, opset))
    except RuntimeError as error:
        reason = str(error).split("[")[0].split(". ")[0].splitlines()[0].strip()
        name = description.backbone.get("name", description.backbone["kind"])
        found = f"{name} with crops of {size_px} px cannot be written at opset {opset} ({reason})"
        raise UserError(
            "--onnx", found, "operators that ONNX has", "another --opset, --program or --safetensors"
        ) from None


def serialise(model: onnx.ModelProto, metadata: dict[str, str]) -> bytes:
    """The file, with its metadata."""
    onnx.helper.set_model_props(model, metadata)
    content: bytes = model.SerializeToString()
    return content


def alignment_nodes(model: onnx.ModelProto) -> list[str]:
    """Names of a spatial transformer's nodes."""
    return [node.name for node in model.graph.node if node.name.startswith("/alignment/")]


def aligned_crops(model: onnx.ModelProto) -> str | None:
    """The name of what a spatial transformer gives the backbone; None without one."""
    names = set(alignment_nodes(model))
    found = [node.output[0] for node in model.graph.node if node.op_type == "GridSample" and node.name in names]
    return found[0] if found else None


def _trace(network: nn.Module, example: torch.Tensor, opset: int) -> bytes:
    file: Any = io.BytesIO()  # for this exporter; the other one takes paths alone
    with warnings.catch_warnings(), _without_standard_output():
        # it announces its successor, and warns of all that might go wrong: whether it did, the parity check shows
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (example,),
            file,
            dynamo=False,
            opset_version=opset,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: {0: "batch"}, OUTPUT: {0: "batch"}},
        )
    return file.getvalue()


@contextmanager
def _without_standard_output() -> Iterator[None]:
    """Before torch's tracing exporter raises, it writes the whole graph to standard output, from C++."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
