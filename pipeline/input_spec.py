"""What a face model takes: the one description that exported files carry and that evaluation reads back."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from pipeline.config.errors import UserError

METADATA_KEY = "facemill.input"
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
    mean: tuple[float, float, float] = (127.5, 127.5, 127.5)
    """Subtracted from each channel, in the order of `colour`; pixels are 0 to 255. Of no meaning for uint8."""
    std: tuple[float, float, float] = (127.5, 127.5, 127.5)
    """What the difference is divided by."""
    template: list[float] | None = None
    """The five target points x0, y0, … x4, y4 of the alignment in px, as data sets record them; null: not known."""

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
