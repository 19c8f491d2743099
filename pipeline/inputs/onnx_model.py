"""An ONNX file as the model, run by ONNX Runtime."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import TensorProto
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from pipeline.config.errors import UserError
from pipeline.evaluate.embed import Embedder, EmbedFn
from pipeline.evaluate.recogniser import Recogniser
from pipeline.evaluate.result import Model
from pipeline.input_spec import METADATA_KEY, METADATA_PREFIX, InputSpec, network_input
from pipeline.inputs.declared import OPTION, Declared
from pipeline.inputs.onnx_input import find_input
from pipeline.inputs.trial import first_line, require_rows, try_out

_CUDA = "CUDAExecutionProvider"
_TRAINED_ON = f"{METADATA_PREFIX}trained_on"
_EXPECTED = "a face model in ONNX: one input [B, 3, H, W] or [B, H, W, 3], one output [B, D]"
_WEIGHT_TYPES = frozenset(
    {
        TensorProto.FLOAT,
        TensorProto.FLOAT16,
        TensorProto.BFLOAT16,
        TensorProto.DOUBLE,
        TensorProto.INT8,
        TensorProto.UINT8,
    }
)


def open_onnx(path: Path, declared: Declared, device: torch.device) -> Recogniser:
    """Open a file and try it out. It runs on as many threads as torch has.

    Args:
        path: the file; weights that it keeps in other files lie where it says.
        declared: counts more than what the file says of itself.
        device: a GPU is used where ONNX Runtime can; else the CPU, and that is noted.

    Raises:
        UserError: not such a file, what it takes cannot be told, or it does not run; also while embedding.
    """
    graph_file = _read(path)
    session = _start(path, device)
    notes = []
    if device.type == "cuda" and _CUDA not in session.get_providers():
        notes.append(f"{path.name} ran on the CPU: this ONNX Runtime has no CUDA provider that works.")
        device = torch.device("cpu")
    inputs = session.get_inputs()
    if len(inputs) != 1:
        raise UserError(path, f"{len(inputs)} inputs ({', '.join(one.name for one in inputs)})", _EXPECTED)
    described = {entry.key: entry.value for entry in graph_file.metadata_props}
    spec, assumed = find_input(path, graph_file.graph, inputs[0], declared, described.get(METADATA_KEY))
    notes += assumed
    output = _output(session, declared.output, path)
    embed = _runner(session, output, spec, path)
    return Recogniser(
        embedder=Embedder(embed, spec.crop_px, device, str(path)),
        description=Model(
            kind="onnx",
            checkpoint=str(path),
            sha256=_digest(path, graph_file),
            input=spec,
            output=output,
            crop_px=spec.crop_px,
            embedding_dim=try_out(embed, spec.crop_px, device, path),
            num_parameters=sum(
                int(np.prod(tensor.dims)) for tensor in _all_tensors(graph_file) if tensor.data_type in _WEIGHT_TYPES
            ),
        ),
        trained_on=_trained_on(described.get(_TRAINED_ON), path),
        notes=notes,
    )


def _read(path: Path) -> onnx.ModelProto:
    if not path.is_file():
        raise UserError(path, "no such file", _EXPECTED)
    try:
        model = onnx.load(str(path), load_external_data=False)
    except (OSError, DecodeError, ValueError) as error:
        raise UserError(path, f"not an ONNX file ({first_line(error)})", _EXPECTED) from None
    if not model.graph.node:
        raise UserError(path, "not an ONNX file, or an empty one", _EXPECTED)
    return model


def _start(path: Path, device: torch.device) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # its errors are raised, and need no second line
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.type == "cuda" and _CUDA in onnxruntime.get_available_providers():
        providers.insert(0, (_CUDA, {"device_id": device.index or 0}))
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # its errors have no common class
        raise UserError(path, f"ONNX Runtime cannot open it ({first_line(error)})", _EXPECTED) from None


def _output(session: onnxruntime.InferenceSession, named: str | None, path: Path) -> str:
    """The output that is the embedding: the one that was named, or the only one that can be."""
    outputs = session.get_outputs()
    names = [output.name for output in outputs]
    if named is not None:
        if named not in names:
            raise UserError(OPTION, f"output={named}, and {path} has {', '.join(names)}", "one of these")
        return named
    if len(names) > 1:
        names = [
            one.name for one in outputs if one.type in ("tensor(float)", "tensor(float16)") and len(one.shape) == 2
        ]
    if len(names) != 1:
        found = f"{len(outputs)} outputs ({', '.join(one.name for one in outputs)})"
        raise UserError(path, f"{found}, of which {len(names)} are matrices of floats", "one", f"{OPTION} output=NAME")
    return names[0]


def _runner(session: onnxruntime.InferenceSession, output: str, spec: InputSpec, path: Path) -> EmbedFn:
    """The model as a function of crops; a file of a fixed batch is run as often as it takes."""
    entry = session.get_inputs()[0]
    # of a batch of 0 ONNX Runtime says what is wrong
    fixed = entry.shape[0] if isinstance(entry.shape[0], int) and entry.shape[0] > 0 else None

    def run(pixels: np.ndarray) -> Tensor:
        try:
            (vectors,) = session.run([output], {entry.name: pixels})
        except Exception as error:  # its errors have no common class
            found = f"ONNX Runtime fails on {pixels.dtype} {list(pixels.shape)} ({first_line(error)})"
            raise UserError(path, found, _EXPECTED) from None
        return require_rows(torch.from_numpy(np.asarray(vectors)), len(pixels), path)

    def embed(crops: Tensor) -> Tensor:
        pixels = network_input(crops.cpu().numpy(), spec)
        return run(pixels) if fixed is None else torch.cat(list(_in_batches(pixels, fixed)))

    def _in_batches(pixels: np.ndarray, size: int) -> Iterator[Tensor]:
        for start in range(0, len(pixels), size):
            part = pixels[start : start + size]
            filled = np.resize(part, (size, *part.shape[1:]))  # the last one repeats its photos
            yield run(filled)[: len(part)]

    return embed


def _digest(path: Path, model: onnx.ModelProto) -> str:
    """SHA-256 of the file, and of those that it keeps weights in after it, by name."""
    beside = {
        entry.value
        for tensor in _all_tensors(model)
        if tensor.data_location == TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    hasher = hashlib.sha256()
    for one in (path, *(path.parent / name for name in sorted(beside))):
        with open(one, "rb") as file:
            while block := file.read(2**20):
                hasher.update(block)
    return hasher.hexdigest()


def _all_tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Everything that may be a weight: initializers and constants, those of subgraphs and functions too."""
    yield from _tensors_of_graph(model.graph)
    for function in model.functions:
        yield from _tensors_of_nodes(function.node)


def _tensors_of_graph(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    yield from (sparse.values for sparse in graph.sparse_initializer)
    yield from _tensors_of_nodes(graph.node)


def _tensors_of_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors) if attribute.HasField("t") else attribute.tensors
            for graph in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
                yield from _tensors_of_graph(graph)


def _trained_on(text: str | None, path: Path) -> list[tuple[str, str]]:
    """Split and digest of each data set, as files of ours say."""
    try:
        return TypeAdapter(list[tuple[str, str]]).validate_json(text or "[]")
    except ValidationError:
        raise UserError(path, f"its {_TRAINED_ON} cannot be read ({text!r})", "[[split, digest], …]") from None
