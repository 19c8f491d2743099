"""The walk over class centres on a GPU: tiles of logits that never leave the chip, in Triton.

`pipeline.model.class_walk` does the same with torch operations, whose blocks of logits go through memory several
times. With queries q [N, D] (embeddings times scale), class centres w [rows, D] of one rank and
z_ij = q_i·w_j / |w_j| + b_j:

    forward   greatest, total = reduce_classes(...)              over this rank's classes
              negative_lse = log of the total over all ranks     two all-reduces of [N]
              loss from target and negative_lse                  autograd on vectors [N]
    backward  for each block of rows, start to stop:
                  G = classes_gradient(...)                      [N, stop − start]
                  dQ += G @ ŵ        dŵ = Gᵀ @ Q                 cuBLAS
                  through_normalisation_(dŵ, ...)                now the gradient of w

Only G is written down, a block at a time; forward keeps two float32 a query and split of the classes, about 1 MiB.
Products take their inputs in the queries' type: bfloat16, or float32 with `input_precision` "ieee" (float32 products,
on the ordinary units: slow) or "tf32" (tensor cores, which cut 13 bits off each input and do not round). They add up
in float32, and everything after them is float32, but for G's last rounding where its type is bfloat16. Class centres
kept in float32 are narrowed on the chip, so that bfloat16 products need no copy of them; given in bfloat16, half as
many bytes are read.

The functions launch on the tensors' device and its current stream, make no graph and are not collective. The first
call for a number of queries, a D and types times a few tile shapes on the arguments given, with a buffer of 256 MiB
for as long, and keeps the fastest. Where TRITON_INTERPRET=1 is set before Triton is first imported, they run on CPU
tensors, slowly, for tests.
"""

from __future__ import annotations

import importlib.util
from typing import Literal

import torch
from torch import Tensor

InputPrecision = Literal["ieee", "tf32"]
"""How float32 inputs are multiplied; without a meaning for bfloat16 ones."""

_BLOCK_DIM = 64
_BLOCK_QUERIES = 128
_BLOCK_CLASSES = 128
"""The tile that the number of splits is reckoned with."""
_PROGRAMS_PER_PROCESSOR = 8
"""Enough that the last ones to finish do not leave most of the GPU idle for long."""
_ROWS_AT_ONCE = 4


def is_available(device: torch.device) -> bool:
    """Whether these functions run on `device`: a GPU with bfloat16 tensor cores, and Triton installed."""
    return (
        device.type == "cuda"
        and importlib.util.find_spec("triton") is not None
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


def reduce_classes(
    queries: Tensor,
    centres: Tensor,
    inverse_lengths: Tensor,
    bias: Tensor | None,
    columns: Tensor,
    input_precision: InputPrecision = "ieee",
) -> tuple[Tensor, Tensor]:
    """Greatest logit and sum of exponentials over this rank's classes, each query's own class left out.

    Args:
        queries: [N, D] float32 or bfloat16, contiguous; its type is that of the products.
        centres: [rows, D] float32 or bfloat16, contiguous; rows may be 0.
        inverse_lengths: [rows] float32, 1 / |w|, or 1 where nothing is normalised.
        bias: [rows] or None.
        columns: [N] int64, the row of the query's own class on this rank, negative where another rank owns it.
        input_precision: see the module.

    Returns:
        greatest [N] float32, max_{j≠y} z_j, −inf where this rank has no other class;
        total [N] float32, Σ_{j≠y} exp(z_j − greatest), 0 there.
    """
    _check(queries, centres, inverse_lengths, bias, columns)
    num_queries, num_rows = len(queries), len(centres)
    if not num_queries or not num_rows:
        empty = torch.zeros(num_queries, device=queries.device)
        return empty - torch.inf, empty
    from pipeline.model import triton_kernels as kernels

    split_rows = _split_rows(num_queries, num_rows, queries.device)
    num_splits = -(-num_rows // split_rows)
    greatest = torch.empty(num_splits, num_queries, device=queries.device)
    total = torch.empty_like(greatest)
    with torch.cuda.device_of(queries):
        kernels.reduce_classes_kernel[lambda tile: (-(-num_queries // tile["BLOCK_QUERIES"]), num_splits)](
            queries,
            centres,
            inverse_lengths,
            bias,
            columns,
            greatest,
            total,
            num_queries,
            num_rows,
            queries.shape[1],
            split_rows,
            **_constants(queries, input_precision),
        )
    joint = greatest.amax(0)
    floor = joint.masked_fill(joint == -torch.inf, 0)
    return joint, (total * (greatest - floor).exp_()).sum(0)


def classes_gradient(
    queries: Tensor,
    centres: Tensor,
    inverse_lengths: Tensor,
    bias: Tensor | None,
    columns: Tensor,
    negative_lse: Tensor,
    lse_gradient: Tensor,
    target_gradient: Tensor,
    start: int,
    stop: int,
    out_dtype: torch.dtype,
    input_precision: InputPrecision = "ieee",
) -> Tensor:
    """Gradient of the loss with respect to the logits of rows `start` to `stop`, which are formed again.

    Args:
        queries, centres, inverse_lengths, bias, columns, input_precision: as for `reduce_classes`.
        negative_lse: [N] float32, log Σ_{j≠y} exp(z_j) over all ranks; −inf where there is no other class.
        lse_gradient: [N] float32, of the loss with respect to `negative_lse`.
        target_gradient: [N] float32, of the loss with respect to the own class's logit.
        start, stop: 0 ≤ start ≤ stop ≤ rows.
        out_dtype: float32 or bfloat16.

    Returns:
        [N, stop − start] of `out_dtype`: exp(z − negative_lse) · lse_gradient, and target_gradient at the own class.
    """
    _check(queries, centres, inverse_lengths, bias, columns)
    for vector in (negative_lse, lse_gradient, target_gradient):
        assert vector.shape == queries.shape[:1]
        assert vector.dtype == torch.float32
        assert vector.is_contiguous()
    assert 0 <= start <= stop <= len(centres)
    num_queries = len(queries)
    gradient = torch.empty(num_queries, stop - start, dtype=out_dtype, device=queries.device)
    if not gradient.numel():
        return gradient
    from pipeline.model import triton_kernels as kernels

    def grid(tile: dict[str, int]) -> tuple[int]:
        return (-(-num_queries // tile["BLOCK_QUERIES"]) * -(-(stop - start) // tile["BLOCK_CLASSES"]),)

    with torch.cuda.device_of(queries):
        kernels.classes_gradient_kernel[grid](
            queries,
            centres,
            inverse_lengths,
            bias,
            columns,
            negative_lse,
            lse_gradient,
            target_gradient,
            gradient,
            num_queries,
            queries.shape[1],
            start,
            stop,
            **_constants(queries, input_precision),
        )
    return gradient


def through_normalisation_(gradient: Tensor, centres: Tensor, inverse_lengths: Tensor) -> None:
    """Turn the gradient of unit-length class centres ŵ = w / |w| into that of w, in place: (g − ŵ (ŵ·g)) / |w|.

    Args:
        gradient: [n, D] float32 or bfloat16, contiguous.
        centres: [n, D] float32 or bfloat16, contiguous, w.
        inverse_lengths: [n] float32, 1 / |w|.
    """
    assert gradient.shape == centres.shape
    assert inverse_lengths.shape == centres.shape[:1]
    assert inverse_lengths.dtype == torch.float32
    assert gradient.is_contiguous()
    assert centres.is_contiguous()
    assert inverse_lengths.is_contiguous()
    num_rows, dim = gradient.shape
    if not num_rows:
        return
    from pipeline.model import triton_kernels as kernels

    with torch.cuda.device_of(gradient):
        kernels.through_normalisation_kernel[(-(-num_rows // _ROWS_AT_ONCE),)](
            gradient,
            centres,
            inverse_lengths,
            num_rows,
            dim,
            BLOCK_ROWS=_ROWS_AT_ONCE,
            BLOCK_DIM=1 << (dim - 1).bit_length(),
        )


def _split_rows(num_queries: int, num_rows: int, device: torch.device) -> int:
    """Rows of one split, a multiple of a tile's, such that queries' tiles times splits keep every processor busy."""
    num_processors = 1
    if device.type == "cuda":
        num_processors = torch.cuda.get_device_properties(device).multi_processor_count
    num_tiles = -(-num_queries // _BLOCK_QUERIES)
    num_splits = max(1, num_processors * _PROGRAMS_PER_PROCESSOR // num_tiles)
    return -(-num_rows // (num_splits * _BLOCK_CLASSES)) * _BLOCK_CLASSES


def _constants(queries: Tensor, input_precision: InputPrecision) -> dict[str, object]:
    return {
        "INPUT_PRECISION": input_precision,
        "IS_DIM_WHOLE": queries.shape[1] % _BLOCK_DIM == 0,
        "BLOCK_DIM": _BLOCK_DIM,
    }


def _check(queries: Tensor, centres: Tensor, inverse_lengths: Tensor, bias: Tensor | None, columns: Tensor) -> None:
    """What the kernels rely on: they see addresses, not shapes."""
    num_rows = len(centres)
    assert queries.ndim == centres.ndim == 2
    assert queries.shape[1] == centres.shape[1]
    assert inverse_lengths.shape == (num_rows,)
    assert bias is None or bias.shape == (num_rows,)
    assert columns.shape == queries.shape[:1]
    assert {queries.dtype, centres.dtype} <= {torch.float32, torch.bfloat16}
    assert inverse_lengths.dtype == torch.float32
    assert columns.dtype == torch.int64
    for tensor in (queries, centres, inverse_lengths, columns, *([] if bias is None else [bias])):
        assert tensor.device == queries.device
        assert tensor.is_contiguous()
