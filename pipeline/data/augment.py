"""Augmentation parameters as data: pure functions of (seed, stream position, place in the list of operations).

Decoders get the same parameters whatever their kind, so a run does not depend on who decodes, on ranks or on workers.
The tree of a configuration becomes a flat list of steps, each with the slots it is applied to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.config.augment import (
    Affine,
    AllOf,
    Augmentation,
    Blur,
    ColourJitter,
    Erase,
    Flip,
    Hsv,
    Jpeg,
    LowResolution,
    OneOf,
    Posterize,
    RandomResizedCrop,
)
from pipeline.data.counter import uniform

_Draw = Callable[[str, float, float], npt.NDArray[np.float64]]
_Values = dict[str, npt.NDArray[np.float64]]


@dataclass(frozen=True)
class Step:
    """One operation for the slots of a micro-batch."""

    kind: str
    """A `kind` of `pipeline.config.augment`, none that has parts."""
    is_on: npt.NDArray[np.bool_]
    """[B] whether a slot's photo undergoes it."""
    values: _Values
    """[B] each: parameters by name, in the units of `pipeline.data.photo_steps`."""

    def at(self, slot: int) -> dict[str, float]:
        """The parameters of one slot."""
        return {name: float(drawn[slot]) for name, drawn in self.values.items()}


def draw_steps(
    operations: Sequence[Augmentation], seed: int, positions: npt.NDArray[np.int64], crop_px: int
) -> tuple[Step, ...]:
    """Draw all parameters of a micro-batch.

    Args:
        operations: of the configuration.
        seed: of the run.
        positions: [B] int64, stream positions: a sample gets other parameters in each epoch.
        crop_px: side of the crops.
    """
    steps: list[Step] = []
    everywhere = np.ones(len(positions), bool)
    for number, operation in enumerate(operations):
        _add_steps(steps, operation, str(number), everywhere, seed, positions, crop_px)
    return tuple(steps)


def _add_steps(
    steps: list[Step],
    operation: Augmentation,
    place: str,
    is_on: npt.NDArray[np.bool_],
    seed: int,
    positions: npt.NDArray[np.int64],
    crop_px: int,
) -> None:
    def draw(name: str, low: float = 0.0, high: float = 1.0) -> npt.NDArray[np.float64]:
        return low + (high - low) * uniform(f"augment {place} {operation.kind} {name}", seed, positions)

    if operation.probability < 1:
        # runs from before there was a list had a flip alone, under this name
        is_first_flip = isinstance(operation, Flip) and place == "0"
        coin = uniform("horizontal flip", seed, positions) if is_first_flip else draw("coin")
        is_on = is_on & (coin < operation.probability)
    if isinstance(operation, OneOf | AllOf):
        chosen = _choices(operation, draw("choice")) if isinstance(operation, OneOf) else None
        for number, part in enumerate(operation.operations):
            own = is_on if chosen is None else is_on & (chosen == number)
            _add_steps(steps, part, f"{place}.{number}", own, seed, positions, crop_px)
        return
    steps.append(Step(operation.kind, is_on, _values(operation, draw, crop_px)))


def _choices(operation: OneOf, draws: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """[B] which of the operations is chosen, from draws [B] in [0, 1)."""
    num_parts = len(operation.operations)
    ends = np.cumsum(operation.weights or (1.0,) * num_parts)
    # the product may be rounded up to the last end
    return np.minimum(np.searchsorted(ends, draws * ends[-1], "right"), num_parts - 1)


def _values(operation: Augmentation, draw: _Draw, side: int) -> _Values:
    """Parameters of an operation without parts."""
    match operation:
        case RandomResizedCrop():
            width, height = _rectangle(operation, draw, side)
            return {
                "left": draw("left", 0, 1) * (side - width),
                "top": draw("top", 0, 1) * (side - height),
                "width": width,
                "height": height,
            }
        case Affine():
            matrix = _affine_matrices(operation, draw, side)
            return {f"m{row}{column}": matrix[:, row, column] for row in range(2) for column in range(3)}
        case ColourJitter():
            names = ("brightness", "contrast", "saturation")
            return {name: _factor(draw, name, getattr(operation, name)) for name in names}
        case Hsv():
            return {
                "hue_degrees": draw("hue", -operation.hue_degrees, operation.hue_degrees),
                "saturation": _factor(draw, "saturation", operation.saturation),
                "value": _factor(draw, "value", operation.value),
            }
        case Posterize():
            return {"bits": _whole(draw, "bits", operation.bits)}
        case Blur():
            return {"sigma_px": draw("sigma", *operation.sigma_px)}
        case LowResolution():
            return {"side_px": np.maximum(1, np.rint(side * draw("side", *operation.side)))}
        case Jpeg():
            return {"quality": _whole(draw, "quality", operation.quality)}
        case Erase():
            width, height = (np.maximum(1, np.rint(length)) for length in _rectangle(operation, draw, side))
            return {
                "left": np.floor(draw("left", 0, 1) * (side - width + 1)),
                "top": np.floor(draw("top", 0, 1) * (side - height + 1)),
                "width": width,
                "height": height,
                "fill": np.full(len(width), float(operation.fill)),
            }
    return {}


def _factor(draw: _Draw, name: str, spread: float) -> npt.NDArray[np.float64]:
    return draw(name, 1 - spread, 1 + spread)


def _whole(draw: _Draw, name: str, bounds: tuple[int, int]) -> npt.NDArray[np.float64]:
    return np.floor(draw(name, bounds[0], bounds[1] + 1))


def _rectangle(
    operation: RandomResizedCrop | Erase, draw: _Draw, side: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Width and height [B] in px, at most the side."""
    area = side * side * draw("area", *operation.area)
    aspect = np.exp(draw("aspect", float(np.log(operation.aspect[0])), float(np.log(operation.aspect[1]))))
    return np.minimum(side, np.sqrt(area * aspect)), np.minimum(side, np.sqrt(area / aspect))


def _affine_matrices(operation: Affine, draw: _Draw, side: int) -> npt.NDArray[np.float64]:
    """[B, 2, 3] from places in the result to places in the photo: px from the corner, pixel centres at ½."""
    angle = np.radians(draw("angle", -operation.rotate_degrees, operation.rotate_degrees))
    shear = np.tan(np.radians(draw("shear", -operation.shear_degrees, operation.shear_degrees)))
    scale = draw("scale", *operation.scale)
    reach = side * operation.translate
    shift = np.stack([draw("shift x", -reach, reach), draw("shift y", -reach, reach)], axis=1)
    cosine, sine = np.cos(angle), np.sin(angle)
    zero, one = np.zeros_like(angle), np.ones_like(angle)
    turn = np.stack([cosine, -sine, sine, cosine], axis=1).reshape(-1, 2, 2)
    lean = np.stack([one, shear, zero, one], axis=1).reshape(-1, 2, 2)
    inverse = np.linalg.inv(turn @ lean * scale[:, None, None])
    centre = np.full(2, side / 2)
    # a result's place p comes from centre + inverse · (p − centre − shift)
    offset = centre - np.einsum("bij,bj->bi", inverse, centre + shift)
    return np.concatenate([inverse, offset[:, :, None]], axis=2)
