"""What an ONNX file takes: what it says of itself, what its graph shows, and what its user says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx

from pipeline.config.errors import UserError
from pipeline.input_spec import METADATA_KEY, InputSpec, parse_input_spec
from pipeline.inputs.declared import OPTION, Declared, require_side
from preprocess.align import template

_DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8"}
_PLACES = {"NCHW": (1, 2, 3), "NHWC": (3, 1, 2)}
"""Of channels, height and width in a layout."""
_ARITHMETIC = frozenset({"Sub", "Add", "Mul", "Div"})
_REARRANGING = frozenset({"Cast", "Identity", "Transpose"})


def find_input(
    path: Path, graph: onnx.GraphProto, entry: Any, declared: Declared, described: str | None
) -> tuple[InputSpec, list[str]]:
    """What a network takes, and a note on what had to be assumed.

    What is declared counts more than what the file's metadata say, and these more than what can be detected: size,
    layout and type from the input's shape; pixels as they are where the network begins with arithmetic of constants,
    as InsightFace's older files do; else (x - 127.5) / 127.5, as InsightFace's others.

    Args:
        path: the file.
        graph: its graph.
        entry: ONNX Runtime's description of its input.
        declared: what its user says.
        described: its metadata under `METADATA_KEY`.

    Raises:
        UserError: size or layout cannot be told, or what is said does not fit the graph.
    """
    own = None if described is None else parse_input_spec(described, f"{path} ({METADATA_KEY})")
    if len(entry.shape) != 4 or entry.type not in _DTYPES:
        found = f"its input {entry.name} is {entry.type} {_shape(entry)}"
        raise UserError(path, found, "float32, float16 or uint8 of [B, 3, H, W] or [B, H, W, 3]")
    dtype = _DTYPES[entry.type]
    if own is not None and own.dtype != dtype:
        raise UserError(path, f"says that it takes {own.dtype}, and its input is {dtype}", "one of them")
    if dtype == "uint8" and "mean" in declared.fields:
        found = f"mean= and std= given with {path}, which takes uint8 and normalises within"
        raise UserError(OPTION, found, "a network that takes floats", "leave them out")
    fields: dict[str, Any] = {} if own is None else own.model_dump(exclude={"height_px", "width_px", "dtype"})
    fields |= declared.fields
    layout = fields.get("layout") or _layout(entry, path)
    height, width = _size(entry, layout, declared, own, path)
    notes = []
    if own is None:
        notes = _assume(fields, path, graph, entry.name, dtype)
    fields |= {"layout": layout, "height_px": height, "width_px": width, "dtype": dtype}
    spec = InputSpec.model_validate(fields)
    _require_template(spec, path)
    return spec, notes


def begins_with(graph: onnx.GraphProto, name: str) -> list[str]:
    """The operations with constants that pixels go through first: `["Sub", "Mul"]` where a network normalises within.

    Args:
        graph: the network.
        name: its input.
    """
    constants = {tensor.name for tensor in graph.initializer}
    constants |= {node.output[0] for node in graph.node if node.op_type == "Constant"}
    found: list[str] = []
    while True:
        users = [node for node in graph.node if name in node.input]
        if len(users) != 1:
            return found
        node = users[0]
        others = [other for other in node.input if other != name]
        if node.op_type in _ARITHMETIC and others and constants.issuperset(others):
            found.append(node.op_type)
        elif node.op_type not in _REARRANGING:
            return found
        name = node.output[0]


def _assume(fields: dict[str, Any], path: Path, graph: onnx.GraphProto, name: str, dtype: str) -> list[str]:
    """Fill in colour and normalisation of a file that does not say them; gives the note."""
    assumed = []
    if "colour" not in fields:
        fields["colour"] = "RGB"
        assumed.append("RGB")
    if dtype != "uint8" and "mean" not in fields:
        operations = begins_with(graph, name)
        if operations:
            fields |= {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
            assumed.append(f"pixels of 0 to 255, as it begins with {' and '.join(operations)}")
        else:
            assumed.append("pixels (x − 127.5) / 127.5")
    if not assumed:
        return []
    return [f"{path.name} does not say what it takes; assumed: {', '.join(assumed)}. {OPTION} says otherwise."]


def _layout(entry: Any, path: Path) -> str:
    fitting = [layout for layout, (channels, _, _) in _PLACES.items() if entry.shape[channels] == 3]
    if len(fitting) != 1:
        found = f"its layout cannot be told from its input's shape {_shape(entry)}"
        raise UserError(path, found, "three channels in one place", f"{OPTION} layout=NCHW or layout=NHWC")
    return fitting[0]


def _size(entry: Any, layout: str, declared: Declared, own: InputSpec | None, path: Path) -> tuple[int, int]:
    channels, *sides = (entry.shape[place] for place in _PLACES[layout])
    if isinstance(channels, int) and channels != 3:
        raise UserError(path, f"its input {_shape(entry)} has {channels} channels in {layout}", "3")
    said = declared.size or (None if own is None else (own.height_px, own.width_px))
    if said is None and not all(isinstance(side, int) for side in sides):
        found = f"its input {_shape(entry)} has no fixed size"
        raise UserError(path, found, "a size in px", f"{OPTION} size=112 or size=112x96")
    fixed = [side if isinstance(side, int) else None for side in sides]
    height, width = (said[place] if side is None and said else side for place, side in enumerate(fixed))
    assert height is not None
    assert width is not None
    if said is not None and (height, width) != said:
        who = OPTION if declared.size else METADATA_KEY
        raise UserError(path, f"its input is {_shape(entry)} in {layout}", f"{said[0]}x{said[1]} px, as {who} says")
    require_side(height, width, path)
    return height, width


def _require_template(spec: InputSpec, path: Path) -> None:
    """Refuse models of another alignment: ours is ArcFace's."""
    if spec.template is None:
        return
    top, left = spec.margins
    ours = (template(spec.crop_px) - (left, top)).ravel()
    if len(spec.template) != 10 or not np.allclose(spec.template, ours, atol=0.5):
        raise UserError(path, "its photos are aligned to another template", "ArcFace's, to which ours are")


def _shape(entry: Any) -> str:
    return "[" + ", ".join(str(side) if isinstance(side, int) else "?" for side in entry.shape) + "]"
