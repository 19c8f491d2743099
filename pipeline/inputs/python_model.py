"""A Python callable as the model: `module:function`."""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import sys
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from pipeline.config.errors import UserError
from pipeline.evaluate.embed import Embedder
from pipeline.evaluate.recogniser import Recogniser
from pipeline.evaluate.result import Model
from pipeline.input_spec import InputSpec
from pipeline.inputs.declared import OPTION, Declared
from pipeline.inputs.trial import first_line, require_rows, try_out

NAME = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def open_callable(name: str, declared: Declared, device: torch.device) -> Recogniser:
    """Import a callable and try it out.

    It is called with uint8 [B, 3, H, W] RGB crops on `device` and gives [B, D] floats, a tensor or an array.

    Args:
        name: `module:function`; the module is looked for in the current directory first.
        declared: says the crops' size.
        device: where its crops lie.

    Raises:
        UserError: no size, no such module or function, or it fails or gives something else; also while embedding.
    """
    declared.require_only(frozenset({"size"}), name, "it gets uint8 RGB [B, 3, H, W] and normalises itself")
    if declared.size is None:
        raise UserError(name, "does not say which crops it takes", f"{OPTION} size=112 or the like")
    height, width = declared.size
    spec = InputSpec(height_px=height, width_px=width, dtype="uint8")
    module, function = _import(name)
    top, left = spec.margins

    def embed(crops: Tensor) -> Tensor:
        crops = crops[:, :, top : top + height, left : left + width].contiguous()
        try:
            vectors = torch.as_tensor(function(crops))
        except Exception as error:  # whatever somebody's function raises
            raise UserError(name, f"fails on uint8 {list(crops.shape)} ({first_line(error)})") from error
        return require_rows(vectors, len(crops), name)

    return Recogniser(
        embedder=Embedder(embed, spec.crop_px, device, name),
        description=Model(
            kind="python",
            checkpoint=name,
            sha256=_digest(module),
            input=spec,
            crop_px=spec.crop_px,
            embedding_dim=try_out(embed, spec.crop_px, device, name),
        ),
    )


def _import(name: str) -> tuple[ModuleType, Callable[[Tensor], Any]]:
    module_name, _, attribute = name.partition(":")
    here = os.getcwd()
    if sys.path[:1] != [here]:
        sys.path.insert(0, here)  # as `python -m` does
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # whatever somebody's module raises
        raise UserError(name, f"cannot be imported ({first_line(error)})", "a module on the Python path") from error
    try:
        function = reduce(getattr, attribute.split("."), module)
    except AttributeError:
        raise UserError(name, f"{module_name} has no {attribute!r}", "module:function") from None
    if not callable(function):
        raise UserError(name, f"{attribute} is a {type(function).__name__}", "a function")
    return module, function


def _digest(module: ModuleType) -> str | None:
    path = getattr(module, "__file__", None)
    return None if path is None else hashlib.sha256(Path(path).read_bytes()).hexdigest()
