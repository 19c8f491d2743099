"""How many rows of a matrix that is never laid out as a whole are worked on at a time."""

from __future__ import annotations

from torch import Tensor

BYTES_CPU = 2**22
"""Of a block on a CPU: it stays in the shared cache between two passes. Measured, a head step takes 4 to 12 % longer
with 1 MiB (more calls) and no less time with 16 MiB."""
BYTES_GPU = 128 * 2**20
"""Of a block on a GPU: large enough for full matrix products."""


def block_rows(num_columns: int, like: Tensor, block_bytes: int | None) -> int:
    """Rows of `num_columns` elements of `like`'s type that fit the budget, one at least; None: the device's budget."""
    if block_bytes is None:
        block_bytes = BYTES_CPU if like.device.type == "cpu" else BYTES_GPU
    return max(1, block_bytes // (max(1, num_columns) * like.element_size()))
