"""Weights in an ONNX file, under the names that the exporter took from the network's modules."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

import onnx
import torch
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import numpy_helper
from torch import Tensor

from pipeline.config.errors import UserError

# what torch.onnx.export calls constants, and weights that it has computed from several of the network's
_MADE_UP = re.compile(r"\d+|onnx::.*|/.*|val_\d+|.*_output_\d+")
_WEIGHTED = ("Conv", "Gemm", "MatMul")
_EXPECTED = "an .onnx file of a backbone, as torch.onnx.export writes it"


def onnx_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a network's weights.

    Raises:
        UserError: no such file, or one whose weights are not the network's own any more: an exporter folds batch norms
            into the convolutions before them, and their statistics are gone then.
    """
    graph = _load(path, with_external_data=False).graph
    stored = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    made_up = [
        name for node in graph.node if node.op_type in _WEIGHTED for name in node.input if _is_made_up(name, stored)
    ]
    if made_up:
        raise UserError(
            path,
            f"its exporter made new weights of the network's ({len(made_up)}, the first {made_up[0]!r}), as it does "
            "when it folds batch norms into convolutions",
            "the network's own weights, under their names",
            "begin from what it was exported from, or export that with training=torch.onnx.TrainingMode.PRESERVE and "
            "do_constant_folding=False",
        )
    return {name: stored[owner] for name, owner in _owners(graph).items()}


def read_onnx(path: Path, names: Collection[str]) -> dict[str, Tensor]:
    """The weights of some names that `onnx_shapes` gives, in the file's types.

    Raises:
        UserError: the file, or one that it keeps its weights in, cannot be read.
    """
    graph = _load(path, with_external_data=True).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    owners = _owners(graph)
    return {name: torch.from_numpy(numpy_helper.to_array(stored[owners[name]]).copy()) for name in names}


def _load(path: Path, with_external_data: bool) -> onnx.ModelProto:
    try:
        model = onnx.load(str(path), load_external_data=with_external_data)
    except (OSError, DecodeError, ValueError, onnx.checker.ValidationError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(path, f"cannot be read ({reason})", _EXPECTED) from error
    if not model.graph.initializer:
        raise UserError(path, "holds no weights", _EXPECTED)
    return model


def _owners(graph: onnx.GraphProto) -> dict[str, str]:
    """The network's names, and under which of them the file keeps the weights: equal ones are stored once, and the
    others are an identity away."""
    stored = {tensor.name for tensor in graph.initializer}
    owners = {name: name for name in stored}
    for node in graph.node:
        if node.op_type == "Identity" and node.input[0] in owners:
            owners[node.output[0]] = owners[node.input[0]]
    return {name: owner for name, owner in owners.items() if not _MADE_UP.fullmatch(name)}


def _is_made_up(name: str, stored: Collection[str]) -> bool:
    return name in stored and _MADE_UP.fullmatch(name) is not None
