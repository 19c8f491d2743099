"""Configuration of what a run begins from, where that is not chance."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from pipeline.config.section import Section


class InitConfig(Section):
    """Weights of an earlier model to begin from. A run that stands in `output` is resumed and does not look at them."""

    path: Path
    """A run directory or one checkpoint of it (the average of its weights where it has one), a `.safetensors` file, an
    `.onnx` file in which batch norms are not folded, or torchvision's weights (`.pth`, read weights-only)."""
    parts: Literal["backbone", "all"] = "backbone"
    """`all` takes the head too: from a checkpoint of a head of the same kind, over the same label map."""
    leave: tuple[str, ...] = Field(())
    """Patterns of the backbone's tensors that are not taken and begin anew, `*` standing for anything: `fc.*`. Any
    other difference in names or shapes is an error."""
