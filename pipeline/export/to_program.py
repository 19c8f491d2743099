"""A model as a `torch.export` program: graph and weights in one file that torch runs without our code."""

from __future__ import annotations

import io

import torch
from torch.export import Dim, ExportedProgram

from pipeline.config.errors import UserError
from pipeline.export.description import Description
from pipeline.export.network import ExportedNetwork
from pipeline.model.backbones import FaceModel

EXAMPLE_BATCH = 2
"""torch.export takes a batch of one for a constant."""


def program_bytes(model: FaceModel, description: Description) -> bytes:
    """What `torch.export.save` writes of a model with a free batch size; `torch.export.load` reads it.

    Each value of the description's metadata is a file of its own inside, `facemill.input` among them.

    Args:
        model: the trained model, on the CPU.
        description: says which input the program takes.

    Raises:
        UserError: a network that torch.export cannot take.
    """
    network = ExportedNetwork(model, description.input.dtype == "uint8", model.alignment).requires_grad_(False)
    file = io.BytesIO()
    torch.export.save(_export(network, description), file, extra_files=description.metadata())
    return file.getvalue()


def _export(network: ExportedNetwork, description: Description) -> ExportedProgram:
    shape = (EXAMPLE_BATCH, 3, description.input.height_px, description.input.width_px)
    example = torch.zeros(shape, dtype=getattr(torch, description.input.dtype))
    try:
        return torch.export.export(network, (example,), dynamic_shapes=({0: Dim("batch")},))
    except Exception as error:  # each way not to understand a network has a class of its own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        name = description.backbone.get("name", description.backbone["kind"])
        raise UserError("--program", f"torch.export cannot take {name} ({reason})", "", "take --onnx") from None
