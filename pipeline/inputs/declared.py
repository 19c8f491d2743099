"""What a user says of a model's input, for models that do not say it themselves."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from pipeline.config.errors import UserError

OPTION = "--input"
LEAST_PX, MOST_PX = 16, 1024
"""Sides that crops can have."""

_SIZE = re.compile(r"(\d{1,5})(?:x(\d{1,5}))?")
_CHOICES = {"layout": ("NCHW", "NHWC"), "colour": ("RGB", "BGR")}
_FORM = "size=112 or size=112x96 (height x width), layout=NCHW, colour=RGB, mean=127.5, std=127.5, output=NAME"


@dataclass(frozen=True)
class Declared:
    """Values of `--input`; what was not said is missing or None."""

    size: tuple[int, int] | None
    """Height and width in px."""
    fields: dict[str, Any]
    """Of `pipeline.input_spec.InputSpec`: any of `layout`, `colour`, `mean`, `std`."""
    output: str | None
    """Which output of a network is the embedding."""

    def require_only(self, allowed: frozenset[str], where: object, reason: str) -> None:
        """Refuse what makes no sense for a model.

        Raises:
            UserError: something else than `allowed` was said.
        """
        said = {*self.fields, *(["size"] if self.size else []), *(["output"] if self.output else [])}
        for name in sorted(said - allowed):
            raise UserError(OPTION, f"{name}= given with {where}", reason, f"leave {name}= out")


def parse_declared(text: str | None) -> Declared:
    """Read `--input "size=112x96 colour=BGR mean=127.5 std=128"`: words `name=value`, three numbers joined by commas
    where channels differ.

    Raises:
        UserError: anything else, or a word twice.
    """
    size: tuple[int, int] | None = None
    fields: dict[str, Any] = {}
    output: str | None = None
    seen: set[str] = set()
    for word in (text or "").split():
        name, _, value = word.partition("=")
        if name in seen:
            raise UserError(OPTION, f"{name}= is given twice", "each once")
        seen.add(name)
        if name == "size":
            size = _size(value)
        elif name in _CHOICES:
            fields[name] = value.upper()
            if fields[name] not in _CHOICES[name]:
                raise UserError(OPTION, f"{word!r}", f"{name}={' or '.join(_CHOICES[name])}")
        elif name in ("mean", "std"):
            fields[name] = _channels(name, value)
        elif name == "output" and value:
            output = value
        else:
            raise UserError(OPTION, f"{word!r}", f"words like {_FORM}")
    if ("mean" in fields) != ("std" in fields):
        raise UserError(OPTION, "one of mean= and std=", "both: a pixel x becomes (x - mean) / std")
    return Declared(size, fields, output)


def _size(value: str) -> tuple[int, int]:
    match = _SIZE.fullmatch(value)
    height, width = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    require_side(height, width, OPTION)
    return height, width


def require_side(height: int, width: int, where: object) -> None:
    """Refuse sizes that no crop can have.

    Raises:
        UserError: a side that is not of `LEAST_PX` to `MOST_PX`.
    """
    if min(height, width) < LEAST_PX or max(height, width) > MOST_PX:
        found = f"an input of {height}x{width} px"
        raise UserError(where, found, f"sides of {LEAST_PX} to {MOST_PX} px, as in {OPTION} size=112 or size=112x96")


def _channels(name: str, value: str) -> tuple[float, float, float]:
    try:
        numbers = [float(part) for part in value.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) == 1:
        numbers *= 3
    if len(numbers) != 3 or not all(map(math.isfinite, numbers)) or (name == "std" and min(numbers) <= 0):
        expected = "one number or three joined by commas, of pixels from 0 to 255"
        raise UserError(OPTION, f"{name}={value}", expected + (", above 0" if name == "std" else ""))
    return numbers[0], numbers[1], numbers[2]
