"""Configuration of who turns JPEG bytes into pixels."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class CpuDecoder(BaseModel):
    """libjpeg-turbo (simplejpeg) and OpenCV, on the loader's threads."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["cpu"] = "cpu"
    """Selects this decoder."""


class DaliDecoder(BaseModel):
    """NVIDIA DALI, a micro-batch at a time."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["dali"] = "dali"
    """Selects this decoder."""
    device: Literal["cpu", "gpu"] = "cpu"
    """Where pixels are made. `gpu` decodes with nvJPEG on the rank's own device and needs CUDA."""
