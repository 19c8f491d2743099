"""Triton kernels of the walk over class centres; `triton_blocks` beside it launches them and says what they compute.

All matrices are row-major without gaps. Elements are counted in int64: ten million class centres of 512 numbers, or
4,096 queries times a million classes, are more than int32 holds.
"""

# no postponed annotations here: Triton reads them to find its compile-time arguments

import triton
import triton.language as tl

# Small tiles fit a processor of an H100 two at a time, and one's exponentials run beside the other's products; large
# ones read less. Which wins depends on types and D. Compiled for an H100, none of them spills registers with bfloat16.
_CONFIGS = [
    triton.Config({"BLOCK_QUERIES": 64, "BLOCK_CLASSES": 128}, num_warps=4, num_stages=4),
    triton.Config({"BLOCK_QUERIES": 128, "BLOCK_CLASSES": 128}, num_warps=4, num_stages=3),
    triton.Config({"BLOCK_QUERIES": 128, "BLOCK_CLASSES": 128}, num_warps=8, num_stages=3),
    triton.Config({"BLOCK_QUERIES": 128, "BLOCK_CLASSES": 256}, num_warps=8, num_stages=3),
]
# The interpreter has no clock to choose by. Rows are no key: sampled classes are not as many in every step.
_tuned = triton.autotune(
    configs=_CONFIGS[:1] if triton.knobs.runtime.interpret else _CONFIGS,
    key=["num_queries", "dim", "INPUT_PRECISION"],
)


@_tuned
@triton.jit
def reduce_classes_kernel(
    queries,
    centres,
    inverse_lengths,
    bias,
    columns,
    greatest,
    total,
    num_queries,
    num_rows,
    dim,
    split_rows,
    INPUT_PRECISION: tl.constexpr,
    IS_DIM_WHOLE: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,
    BLOCK_CLASSES: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    """A tile of queries over one split of the classes: greatest logit and sum of exponentials, into [splits, N]."""
    # tiles of queries are neighbours in time, so that one reads a class centre from memory and the others from cache
    query = tl.program_id(0) * BLOCK_QUERIES + tl.arange(0, BLOCK_QUERIES)
    split = tl.program_id(1)
    is_query = query < num_queries
    column = tl.load(columns + query, mask=is_query, other=-1).to(tl.int32)
    running_greatest = tl.full([BLOCK_QUERIES], float("-inf"), tl.float32)
    running_total = tl.zeros([BLOCK_QUERIES], tl.float32)
    first = split * split_rows
    stop = tl.minimum(first + split_rows, num_rows)
    for start in range(first, stop, BLOCK_CLASSES):
        row = start + tl.arange(0, BLOCK_CLASSES)
        logits = _logits(
            queries, centres, inverse_lengths, bias, query, row, num_queries, stop, dim,
            INPUT_PRECISION, IS_DIM_WHOLE, BLOCK_QUERIES, BLOCK_CLASSES, BLOCK_DIM,
        )  # fmt: skip
        logits = tl.where(row[None, :] == column[:, None], float("-inf"), logits)
        new_greatest = tl.maximum(running_greatest, tl.max(logits, 1))
        # −inf − −inf would be NaN
        floor = tl.where(new_greatest == float("-inf"), 0.0, new_greatest)
        running_total *= tl.exp(running_greatest - floor)
        running_total += tl.sum(tl.exp(logits - floor[:, None]), 1)
        running_greatest = new_greatest
    place = split.to(tl.int64) * num_queries + query
    tl.store(greatest + place, running_greatest, mask=is_query)
    tl.store(total + place, running_total, mask=is_query)


@_tuned
@triton.jit
def classes_gradient_kernel(
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
    dim,
    start,
    stop,
    INPUT_PRECISION: tl.constexpr,
    IS_DIM_WHOLE: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,
    BLOCK_CLASSES: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    """A tile of the gradient [N, stop − start] of the logits."""
    # one axis of programs, because a second may not be longer than 65,535
    num_tiles = tl.cdiv(num_queries, BLOCK_QUERIES)
    program = tl.program_id(0)
    query = program % num_tiles * BLOCK_QUERIES + tl.arange(0, BLOCK_QUERIES)
    row = start + program // num_tiles * BLOCK_CLASSES + tl.arange(0, BLOCK_CLASSES)
    is_query = query < num_queries
    logits = _logits(
        queries, centres, inverse_lengths, bias, query, row, num_queries, stop, dim,
        INPUT_PRECISION, IS_DIM_WHOLE, BLOCK_QUERIES, BLOCK_CLASSES, BLOCK_DIM,
    )  # fmt: skip
    column = tl.load(columns + query, mask=is_query, other=-1).to(tl.int32)
    lse = tl.load(negative_lse + query, mask=is_query, other=0.0)
    # −inf: the target is the only class, and no other has a probability
    lse = tl.where(lse == float("-inf"), float("inf"), lse)
    factor = tl.load(lse_gradient + query, mask=is_query, other=0.0)
    own = tl.load(target_gradient + query, mask=is_query, other=0.0)
    value = tl.exp(logits - lse[:, None]) * factor[:, None]
    value = tl.where(row[None, :] == column[:, None], own[:, None], value)
    place = query.to(tl.int64)[:, None] * (stop - start) + (row - start)[None, :]
    is_inside = is_query[:, None] & (row < stop)[None, :]
    tl.store(gradient + place, value.to(gradient.dtype.element_ty), mask=is_inside)


@triton.jit
def through_normalisation_kernel(
    gradient,
    centres,
    inverse_lengths,
    num_rows,
    dim,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    """Some whole rows of the class centres' gradient, in place."""
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    place = tl.arange(0, BLOCK_DIM)
    is_inside = (row < num_rows)[:, None] & (place < dim)[None, :]
    offset = row.to(tl.int64)[:, None] * dim + place[None, :]
    inverse_length = tl.load(inverse_lengths + row, mask=row < num_rows, other=0.0)[:, None]
    direction = tl.load(centres + offset, mask=is_inside, other=0.0).to(tl.float32) * inverse_length
    value = tl.load(gradient + offset, mask=is_inside, other=0.0).to(tl.float32)
    value = (value - direction * tl.sum(direction * value, 1)[:, None]) * inverse_length
    tl.store(gradient + offset, value.to(gradient.dtype.element_ty), mask=is_inside)


@triton.jit
def _logits(
    queries,
    centres,
    inverse_lengths,
    bias,
    query,
    row,
    num_queries,
    stop,
    dim,
    INPUT_PRECISION: tl.constexpr,
    IS_DIM_WHOLE: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,
    BLOCK_CLASSES: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    """A tile of logits in float32, −inf for rows from `stop` on; queries past the last repeat the last."""
    # clamped rather than masked: what is read past the end costs nothing, and is dropped by the caller or below
    query_offset = tl.minimum(query, num_queries - 1).to(tl.int64)[:, None] * dim
    safe_row = tl.minimum(row, stop - 1)
    row_offset = safe_row.to(tl.int64)[:, None] * dim
    product = tl.zeros([BLOCK_QUERIES, BLOCK_CLASSES], tl.float32)
    for start in range(0, dim, BLOCK_DIM):
        place = start + tl.arange(0, BLOCK_DIM)[None, :]
        if IS_DIM_WHOLE:
            query_part = tl.load(queries + query_offset + place)
            row_part = tl.load(centres + row_offset + place)
        else:
            query_part = tl.load(queries + query_offset + place, mask=place < dim, other=0.0)
            row_part = tl.load(centres + row_offset + place, mask=place < dim, other=0.0)
        row_part = row_part.to(query_part.dtype)
        product = tl.dot(query_part, tl.trans(row_part), product, input_precision=INPUT_PRECISION)
    # one vector brings in the bias and takes the rows past the end out
    added = tl.where(row < stop, 0.0, float("-inf"))
    if bias is not None:
        added += tl.load(bias + safe_row).to(tl.float32)
    return product * tl.load(inverse_lengths + safe_row)[None, :] + added[None, :]
