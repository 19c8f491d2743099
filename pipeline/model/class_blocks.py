"""A rank's class centres, a block of rows at a time: logits, and the way of their gradients back to the factors.

Rows are never copied to unit length: a logit's column is divided by the row's length instead, which touches N numbers a
class where the copy would touch D, in each direction, and leaves the rows where they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pipeline.model.margins.base import NegativeTransform

MIN_NORM = 1e-12
"""Floor of a class centre's length where it divides."""

Reduction = Literal["log_sum_exp", "softplus_sum"]
"""What becomes of a query's logits, its target's left out: log Σ exp(z), or Σ log(1 + exp(z))."""


@dataclass(frozen=True)
class WalkOptions:
    """What does not change the types of a walk's tensors."""

    normalise: bool
    """Divide each class centre by its length."""
    block_rows: int
    """Classes a block."""
    keep_bytes: int = 0
    """Memory for blocks of logits that are kept for the backward pass."""
    transform: NegativeTransform | None = None
    """Elementwise map of the logits; the target's own are not touched."""
    reduction: Reduction = "log_sum_exp"
    """See there."""
    sums_logits: bool = False
    """Add the logits up, too; with log_sum_exp."""
    is_bias_on_target: bool = True
    """Whether the target's logit has the bias too."""
    num_subcentres: int = 1
    """K: consecutive rows of one class, of which the most similar one counts."""
    is_bf16: bool = False
    """Round the factors of all matrix products to bfloat16; sums are float32."""


class ClassBlocks:
    """A rank's class centres, block by block; classes are counted, of K rows each.

    Args:
        queries, centres, bias, options: see `walk_classes`.
        inverse: [classes · K], an earlier object's; None: found along with the logits.
    """

    def __init__(
        self, queries: Tensor, centres: Tensor, bias: Tensor | None, options: WalkOptions, inverse: Tensor | None = None
    ) -> None:
        self.queries, self._centres, self._bias, self._options = queries, centres, bias, options
        self._num_classes = len(centres) // options.num_subcentres
        self._has_inverse = inverse is not None
        self.inverse = inverse
        """[classes · K], one over each row's length, where rows are normalised."""
        if inverse is None and options.normalise:
            self.inverse = torch.empty(len(centres), dtype=centres.dtype, device=centres.device)
        block_bytes = min(options.block_rows, max(1, self._num_classes)) * len(queries) * queries.element_size()
        self.num_kept = options.keep_bytes // max(1, block_bytes) if options.num_subcentres == 1 else 0
        """How many blocks of logits, from the first, the budget keeps."""

    def ranges(self) -> Iterator[tuple[int, int]]:
        """First class and end of each block."""
        for start in range(0, self._num_classes, self._options.block_rows):
            yield start, min(start + self._options.block_rows, self._num_classes)

    def logits(self, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        """Logits [N, n] of the classes' most similar rows, and which these are: [N, n, 1] int64, None for K = 1."""
        rows = self._rows(start, stop)
        products = _product(self.queries, rows.t(), self._options)
        inverse = self._inverse(start, stop, rows)
        if inverse is not None:
            products.mul_(inverse)
        chosen = None
        if self._options.num_subcentres > 1:
            greatest, chosen = products.view(len(products), -1, self._options.num_subcentres).max(2, keepdim=True)
            products = greatest.squeeze(2)
        if self._bias is not None:
            products.add_(self._bias[start:stop])
        return products, chosen

    def add_gradients(
        self, start: int, stop: int, gradient: Tensor, queries_gradient: Tensor, centres_gradient: Tensor
    ) -> None:
        """Carry the gradient [N, n · K] of a block's products to queries (added) and rows (set); overwrites it."""
        rows = self._rows(start, stop)
        inverse = self._inverse(start, stop, rows)
        if inverse is not None:
            gradient.mul_(inverse)
        k = self._options.num_subcentres
        part = centres_gradient[start * k : stop * k]
        if self._options.is_bf16:
            queries_gradient.add_(_product(gradient, rows, self._options))
            part.copy_(_product(gradient.t(), self.queries, self._options))
        else:
            queries_gradient.addmm_(gradient, rows)
            torch.mm(gradient.t(), self.queries, out=part)
        if inverse is not None:
            # through w / |w|: only what is perpendicular to w moves the direction
            along = torch.linalg.vecdot(rows, part).mul_(inverse).mul_(inverse)
            part.addcmul_(rows, along[:, None], value=-1)

    def fused_arguments(self, columns: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]:
        """What the functions of `triton_blocks` begin with."""
        inverse = self._inverse(0, self._num_classes, self._centres)
        self._has_inverse = True
        if inverse is None:
            inverse = torch.ones(len(self._centres), device=self._centres.device)
        bias = None if self._bias is None else self._bias.contiguous()
        return self.queries.to(torch.bfloat16), self._centres, inverse, bias, columns

    def _rows(self, start: int, stop: int) -> Tensor:
        k = self._options.num_subcentres
        return self._centres[start * k : stop * k]

    def _inverse(self, start: int, stop: int, rows: Tensor) -> Tensor | None:
        if self.inverse is None:
            return None
        k = self._options.num_subcentres
        part = self.inverse[start * k : stop * k]
        if not self._has_inverse:
            part.copy_(inverse_lengths(rows))
        return part


def inverse_lengths(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows, dim=1).clamp_(min=MIN_NORM).reciprocal_()


def rounded(x: Tensor) -> Tensor:
    """To bfloat16 and back: products of such factors are exact in float32, as tensor cores form them."""
    return x.to(torch.bfloat16).to(x.dtype)


def _product(left: Tensor, right: Tensor, options: WalkOptions) -> Tensor:
    """Matrix product, in float32 or more; bfloat16 factors where asked for."""
    if not options.is_bf16:
        return left @ right
    if left.device.type == "cuda":
        return torch.mm(left.to(torch.bfloat16), right.to(torch.bfloat16), out_dtype=torch.float32)
    # a CPU would round the result too
    return rounded(left).to(right.dtype) @ rounded(right)
