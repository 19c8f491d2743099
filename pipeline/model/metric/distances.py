"""Distances of unit vectors as functions of their cosine, with their derivatives."""

from __future__ import annotations

import torch
from torch import Tensor

MIN_SQUARED_DISTANCE = 1e-6
"""d² below this counts as this where a root is taken, with slope 0: a float32 cosine is not exact to more."""


def squared_distance(cosine: Tensor) -> Tensor:
    """d² = 2 − 2·cosine, elementwise; infinite at −inf."""
    return 2 - 2 * cosine


def distance(cosine: Tensor) -> Tensor:
    """d = √max(d², 1e-6), elementwise; infinite at −inf."""
    return squared_distance(cosine).clamp_(min=MIN_SQUARED_DISTANCE).sqrt_()


def distance_slope(d: Tensor) -> Tensor:
    """Derivative of `distance` with respect to the cosine, from its value: −1/d, and 0 where d is at its floor."""
    return torch.where(d * d > MIN_SQUARED_DISTANCE * (1 + 1e-6), -1 / d, 0)
