"""Augmentation parameters as data: pure functions of (seed, stream position, operation).

Decoders get the same parameters whatever their kind, so a run does not depend on who decodes, on ranks or on workers.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.data.counter import uniform


def flip_flags(seed: int, positions: npt.NDArray[np.int64], probability: float) -> npt.NDArray[np.bool_]:
    """Say which samples are mirrored left to right.

    Args:
        positions: [B] int64, stream positions: a sample may be flipped in one epoch and not in the next.
        probability: of a flip, in [0, 1].

    Returns:
        [B] bool.
    """
    return uniform("horizontal flip", seed, positions) < probability
