"""What a face model takes: the one description that exported files carry and that evaluation reads back."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, field_validator

from pipeline.config.errors import UserError

METADATA_PREFIX = "facemill."
"""Of all keys that exported files have in their metadata."""
METADATA_KEY = f"{METADATA_PREFIX}input"
"""Under this key of an ONNX file's metadata stands an `InputSpec` as JSON."""


class InputSpec(BaseModel):
    """Input of a network: aligned crops, and how their pixels become numbers.

    A network gets (pixel − mean) / std in float32, or the pixels themselves as uint8 where it normalises within.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    height_px: int = Field(gt=0)
    width_px: int = Field(gt=0)
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    colour: Literal["RGB", "BGR"] = "RGB"
    dtype: Literal["float32", "float16", "uint8"] = "float32"
    """Of the input tensor."""
    mean: tuple[FiniteFloat, FiniteFloat, FiniteFloat] = (127.5, 127.5, 127.5)
    """Subtracted from each channel, in the order of `colour`; pixels are 0 to 255. Of no meaning for uint8."""
    std: tuple[FiniteFloat, FiniteFloat, FiniteFloat] = (127.5, 127.5, 127.5)
    """What the difference is divided by."""
    template: list[FiniteFloat] | None = None
    """The five target points x0, y0, … x4, y4 of the alignment in px, as data sets record them; null: not known."""

    @property
    def crop_px(self) -> int:
        """Side of the square crops whose centre, `height_px` by `width_px`, the network gets."""
        return max(self.height_px, self.width_px)

    @property
    def margins(self) -> tuple[int, int]:
        """Rows above and columns left of that centre."""
        return (self.crop_px - self.height_px) // 2, (self.crop_px - self.width_px) // 2

    @field_validator("std")
    @classmethod
    def _divides(cls, std: tuple[float, float, float]) -> tuple[float, float, float]:
        if not all(value > 0 for value in std):
            raise ValueError("std must be above 0")
        return std


def parse_input_spec(text: str, where: object) -> InputSpec:
    """An `InputSpec` from JSON.

    Raises:
        UserError: not one, and what is wrong with it.
    """
    try:
        return InputSpec.model_validate_json(text)
    except ValidationError as error:
        first: Any = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"]) or "it"
        raise UserError(where, f"its input's description is wrong: {name}: {first['msg']}", "an InputSpec") from None


def network_input(crops: npt.NDArray[np.uint8], spec: InputSpec) -> npt.NDArray[np.generic]:
    """What a network gets in place of crops.

    A network that is not square gets the crop's centre: 112 x 96 px of a 112 px crop are its columns 8 to 103, which is
    what the older template of that size shows.

    Args:
        crops: [B, 3, S, S] uint8 RGB, S = `spec.crop_px`.
        spec: what it takes.

    Returns:
        [B, 3, H, W] or [B, H, W, 3] of `spec.dtype`, contiguous.
    """
    top, left = spec.margins
    centre = crops[:, :, top : top + spec.height_px, left : left + spec.width_px]
    pixels: npt.NDArray[np.generic] = centre[:, ::-1] if spec.colour == "BGR" else centre
    if spec.dtype != "uint8":
        mean, std = (np.array(values, np.float32)[:, None, None] for values in (spec.mean, spec.std))
        pixels = ((pixels.astype(np.float32) - mean) / std).astype(spec.dtype, copy=False)
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1) if spec.layout == "NHWC" else pixels)
