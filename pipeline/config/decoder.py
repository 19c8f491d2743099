"""Which library decodes the JPEGs of a training run, and where."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class CpuDecoder(BaseModel):
    """torchvision's JPEG decoder in the loader's own threads."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["cpu"] = "cpu"


class DaliDecoder(BaseModel):
    """NVIDIA DALI."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["dali"] = "dali"
    device: Literal["cpu", "gpu"] = "cpu"
    """`gpu` decodes with nvJPEG and needs a CUDA device."""
