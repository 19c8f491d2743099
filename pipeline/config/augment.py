"""Configuration of augmentation: a list of operations, in the order in which they are applied.

Ranges are drawn evenly. Whether an operation is applied, and with which parameters, follows from the seed, the stream
position and the operation's place in the list.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config.section import Section

Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(gt=0)]

_LISTS = ("operations", "weights")  # every other tuple is a range


class _Operation(Section):
    probability: float = Field(1.0, ge=0, le=1)
    """Of applying it to a photo."""

    @model_validator(mode="after")
    def _ranges_rise(self) -> _Operation:
        for name, value in self:
            if name not in _LISTS and isinstance(value, tuple) and value[0] > value[1]:
                raise ValueError(f"{name}: {value[0]} to {value[1]} is no range")
        return self


class Flip(_Operation):
    """Mirror left to right."""

    kind: Literal["flip"] = "flip"
    probability: float = Field(0.5, ge=0, le=1)
    """Of applying it to a photo."""


class RandomResizedCrop(_Operation):
    """Cut a rectangle out and stretch it to the full size."""

    kind: Literal["random_resized_crop"] = "random_resized_crop"
    area: tuple[Share, Share] = (0.8, 1.0)
    """Share of the photo's area that is kept."""
    aspect: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (0.9, 1.11)
    """Width over height, drawn evenly in its logarithm; cut where the photo ends."""


class Affine(_Operation):
    """Turn, shift, scale and shear about the centre; what comes from outside is black."""

    kind: Literal["affine"] = "affine"
    rotate_degrees: float = Field(10.0, ge=0, le=180)
    """Greatest angle, to either side."""
    translate: float = Field(0.05, ge=0, le=1)
    """Greatest shift along each axis, as a share of the side."""
    scale: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (0.9, 1.1)
    """Factor of size."""
    shear_degrees: float = Field(0.0, ge=0, lt=90)
    """Greatest angle by which upright lines lean, to either side."""


class ColourJitter(_Operation):
    """Brightness, then contrast about mid-grey, then saturation: each a factor from 1 − x to 1 + x."""

    kind: Literal["colour_jitter"] = "colour_jitter"
    brightness: float = Field(0.2, ge=0, le=1)
    """x of brightness."""
    contrast: float = Field(0.2, ge=0, le=1)
    """x of contrast."""
    saturation: float = Field(0.2, ge=0, le=1)
    """x of saturation."""


class Hsv(_Operation):
    """Turn hues, scale saturation and value, all as one linear map of colours."""

    kind: Literal["hsv"] = "hsv"
    hue_degrees: float = Field(10.0, ge=0, le=180)
    """Greatest turn, to either side."""
    saturation: float = Field(0.2, ge=0, le=1)
    """Factor from 1 − x to 1 + x."""
    value: float = Field(0.2, ge=0, le=1)
    """Factor from 1 − x to 1 + x."""


class Grey(_Operation):
    """Drop the colours."""

    kind: Literal["grey"] = "grey"
    probability: float = Field(0.1, ge=0, le=1)
    """Of applying it to a photo."""


class Posterize(_Operation):
    """Keep the highest bits of each value."""

    kind: Literal["posterize"] = "posterize"
    bits: tuple[Annotated[int, Field(ge=1, le=8)], Annotated[int, Field(ge=1, le=8)]] = (3, 6)
    """How many."""


class Equalize(_Operation):
    """Spread each channel's histogram over all values."""

    kind: Literal["equalize"] = "equalize"


class Blur(_Operation):
    """Gaussian blur."""

    kind: Literal["blur"] = "blur"
    sigma_px: tuple[Annotated[float, Field(gt=0, le=20)], Annotated[float, Field(gt=0, le=20)]] = (0.3, 1.5)
    """Standard deviation."""


class LowResolution(_Operation):
    """Shrink and enlarge again, as a face far from the camera."""

    kind: Literal["low_resolution"] = "low_resolution"
    side: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]] = (0.25, 0.75)
    """Share of the side that it is shrunk to."""


class Jpeg(_Operation):
    """Artefacts of JPEG compression."""

    kind: Literal["jpeg"] = "jpeg"
    quality: tuple[Annotated[int, Field(ge=1, le=100)], Annotated[int, Field(ge=1, le=100)]] = (30, 90)
    """Of the compression."""


class Erase(_Operation):
    """Cover a rectangle (random erasing, Zhong et al. 2017, arXiv:1708.04896)."""

    kind: Literal["erase"] = "erase"
    area: tuple[Share, Share] = (0.02, 0.2)
    """Share of the photo's area."""
    aspect: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (0.4, 2.5)
    """Width over height, drawn evenly in its logarithm; cut where the photo ends."""
    fill: int = Field(128, ge=0, le=255)
    """Value of all channels."""


class OneOf(_Operation):
    """One of several."""

    kind: Literal["one_of"] = "one_of"
    operations: tuple[Augmentation, ...] = Field(min_length=1)
    """What to choose from."""
    weights: tuple[Weight, ...] | None = None
    """How often each is chosen, relative to the others; all alike when left out."""

    @model_validator(mode="after")
    def _weights_fit(self) -> OneOf:
        if self.weights is not None and len(self.weights) != len(self.operations):
            raise ValueError(f"weights: {len(self.weights)} for {len(self.operations)} operations")
        return self


class AllOf(_Operation):
    """Several in a row, or none."""

    kind: Literal["all_of"] = "all_of"
    operations: tuple[Augmentation, ...] = Field(min_length=1)
    """What to apply."""


Leaf = (
    Flip
    | RandomResizedCrop
    | Affine
    | ColourJitter
    | Hsv
    | Grey
    | Posterize
    | Equalize
    | Blur
    | LowResolution
    | Jpeg
    | Erase
)
Augmentation = Annotated[Leaf | OneOf | AllOf, Field(discriminator="kind")]

OneOf.model_rebuild()
AllOf.model_rebuild()
