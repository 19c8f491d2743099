"""The Triton kernels on CPU tensors. `test_triton_blocks.py` runs this file, in a process with TRITON_INTERPRET=1."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from triton.runtime import interpreter

from pipeline.model import triton_blocks
from tests.losses.test_class_blocks import LargestTensor
from tests.losses.triton_reference import (
    Inputs,
    composed,
    dense,
    differences,
    inverse_lengths,
    make_inputs,
    walk,
)

FP32, BF16 = torch.float32, torch.bfloat16
TYPES = [(FP32, FP32), (BF16, FP32), (BF16, BF16)]
SHAPES = [
    (1, 1, 1),
    (5, 1, 16),  # the own class, or one that is no one's
    (7, 2, 64),
    (300, 700, 72),  # several tiles of queries, splits, tiles of a split and parts of D, none of them whole
    (129, 257, 128),
    (64, 128, 64),
]


@pytest.fixture(autouse=True)
def bfloat16_in_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the interpreter the bfloat16 of a GPU.

    It keeps the bits as uint16, and Triton 3.8 multiplies these bits in `tl.dot` (triton-lang/triton, issue 11584) and
    cuts float32 off where the hardware rounds to nearest.
    """
    builder = interpreter.InterpreterBuilder
    dot, cast = builder.create_dot, builder.cast_impl
    float32 = interpreter.tl.float32

    def widen(handle: Any) -> Any:
        if handle.dtype.scalar != interpreter.tl.bfloat16:
            return handle
        values = torch.from_numpy(handle.data.copy()).view(BF16).float().numpy()
        return interpreter.TensorHandle(values, float32)

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return dot(self, widen(a), widen(b), *rest)

    def cast_impl(self: Any, source: Any, target: Any) -> Any:
        types = source.dtype.scalar, target.scalar
        if types == (interpreter.tl.bfloat16, float32):
            return widen(source)
        if types == (float32, interpreter.tl.bfloat16):
            bits = torch.from_numpy(source.data.copy()).to(BF16).view(torch.uint16).numpy()
            return interpreter.TensorHandle(bits, interpreter.tl.bfloat16)
        return cast(self, source, target)

    monkeypatch.setattr(builder, "create_dot", create_dot)
    monkeypatch.setattr(builder, "cast_impl", cast_impl)
    for name in ("create_fp_ext", "create_fp_trunc"):
        monkeypatch.setattr(builder, name, cast_impl)


def reduce(inputs: Inputs) -> tuple[Tensor, Tensor]:
    return triton_blocks.reduce_classes(
        inputs.queries, inputs.centres, inverse_lengths(inputs), inputs.bias, inputs.columns
    )


@pytest.mark.parametrize("types", TYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("has_bias", [False, True])
def test_whole_step(shape: tuple[int, int, int], types: tuple[torch.dtype, torch.dtype], has_bias: bool) -> None:
    """Inputs are the same numbers in every type, so what differs is the kernels' own: fp32, or G rounded to bf16."""
    inputs = make_inputs(*shape, has_bias=has_bias)
    reference = dense(inputs)
    for name, error in differences(composed(inputs.to(*types), 300), reference).items():
        is_rounded = types[0] == BF16 and name in ("queries", "centres", "bias")
        # two roundings on the way to a product, of G and of ŵ, 2⁻⁹ each
        assert error < (2**-8 if is_rounded else 1e-5), name
    if types[0] == FP32:
        for name, error in differences(composed(inputs, 300), walk(inputs, 300)).items():
            assert error < 1e-5, name


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("has_bias", [False, True])
def test_the_walk_takes_the_kernels(
    shape: tuple[int, int, int], has_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = make_inputs(*shape, has_bias=has_bias)
    in_blocks = walk(inputs, 300, is_bf16=True)
    calls = []

    def counted(*arguments: Any) -> Tensor:
        calls.append(arguments)
        return original(*arguments)

    original = triton_blocks.classes_gradient
    monkeypatch.setattr(triton_blocks, "is_available", lambda device: True)
    monkeypatch.setattr(triton_blocks, "classes_gradient", counted)
    on_chip = walk(inputs, 300, is_bf16=True)
    assert len(calls) == -(-shape[1] // 300)
    for name, error in differences(on_chip, dense(inputs)).items():
        assert error < (2**-8 if name in ("queries", "centres", "bias") else 1e-5), name
    for name, error in differences(on_chip, in_blocks).items():
        assert error < 2**-8, name


def test_rounding_of_inputs_to_bfloat16() -> None:
    """What a whole bf16 step loses against exact inputs, at ArcFace's scale; the own class's logit stays float32."""
    inputs = make_inputs(64, 300, 128, scale=64.0)
    generator = torch.Generator().manual_seed(1)
    exact = Inputs(
        inputs.queries + 0.1 * torch.randn(64, 128, generator=generator),
        inputs.centres + 0.001 * torch.randn(300, 128, generator=generator),
        None,
        inputs.columns,
        True,
    )
    found = differences(composed(exact.to(BF16, FP32), 300, target=exact), dense(exact))
    assert found["loss"] < 2e-3
    assert found["negative_lse"] < 2e-3
    assert found["queries"] < 2e-2
    assert found["centres"] < 2e-2


@pytest.mark.parametrize("block", [(0, 257), (0, 0), (3, 4), (100, 257), (256, 257)])
@pytest.mark.parametrize("out_dtype", [FP32, BF16])
def test_gradient_of_some_rows(block: tuple[int, int], out_dtype: torch.dtype) -> None:
    inputs = make_inputs(70, 257, 24)
    lengths = inverse_lengths(inputs)
    logits = inputs.queries.double() @ (inputs.centres * lengths[:, None]).double().t()
    negative_lse, lse_gradient, target_gradient = torch.randn(3, 70).unbind()
    expected = (logits - negative_lse[:, None]).exp() * lse_gradient[:, None]
    for query, column in enumerate(inputs.columns.tolist()):
        if column >= 0:
            expected[query, column] = target_gradient[query]
    vectors = [vector.contiguous() for vector in (negative_lse, lse_gradient, target_gradient)]
    found = triton_blocks.classes_gradient(
        inputs.queries, inputs.centres, lengths, None, inputs.columns, *vectors, *block, out_dtype
    )
    assert found.dtype == out_dtype
    assert found.shape == (70, block[1] - block[0])
    tolerance = 1e-5 if out_dtype == FP32 else 2**-8
    assert torch.allclose(found.double(), expected[:, slice(*block)], rtol=tolerance, atol=0)


@pytest.mark.parametrize("num_queries", [0, 3])
@pytest.mark.parametrize("types", TYPES, ids=str)
def test_an_empty_partition(num_queries: int, types: tuple[torch.dtype, torch.dtype]) -> None:
    inputs = Inputs(
        torch.ones(num_queries, 8), torch.empty(0, 8), None, torch.full((num_queries,), -1), normalise=True
    ).to(*types)
    greatest, total = reduce(inputs)
    assert greatest.tolist() == [-torch.inf] * num_queries
    assert total.tolist() == [0] * num_queries
    vector = torch.zeros(num_queries)
    gradient = triton_blocks.classes_gradient(
        inputs.queries, inputs.centres, vector[:0], None, inputs.columns, vector, vector, vector, 0, 0, BF16
    )
    assert gradient.shape == (num_queries, 0)
    triton_blocks.through_normalisation_(inputs.centres, inputs.centres, vector[:0])


def test_no_queries() -> None:
    inputs = Inputs(torch.empty(0, 8), torch.ones(5, 8), None, torch.empty(0, dtype=torch.int64), normalise=True)
    assert [len(vector) for vector in reduce(inputs)] == [0, 0]
    assert composed(inputs, 3).centres.abs().max() == 0


# at the own class, before its gradient is put there
@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
def test_logits_far_apart() -> None:
    """Unnormalised logits of ±2,000: nothing overflows, and each probability is 0 or 1."""
    queries = torch.tensor([[1000.0, 0.0], [-1000.0, 0.0], [0.0, 1000.0]])
    centres = torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, -2.0], [0.0, 2.0]])
    inputs = Inputs(queries, centres, torch.zeros(4), torch.tensor([0, 0, -1]), normalise=False)
    greatest, total = reduce(inputs)
    assert greatest.tolist() == [0, 2000, 2000]
    assert total.tolist() == [2, 1, 1]
    gradient = triton_blocks.classes_gradient(
        *(queries, centres, torch.ones(4), inputs.bias, inputs.columns),
        *(greatest + total.log(), torch.tensor([0.0, 3.0, 5.0]), torch.tensor([7.0, 8.0, 9.0]), 0, 4, FP32),
    )
    assert gradient.tolist() == [[7, 0, 0, 0], [8, 3, 0, 0], [0, 0, 0, 5]]


@pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning")
def test_a_nan_stays_in_its_row() -> None:
    """A diverged embedding must show in the loss, and only in its own sample's."""
    inputs = make_inputs(70, 300, 24)
    inputs.queries[3, 5] = torch.nan
    total = reduce(inputs)[1]
    assert total.isnan().nonzero().flatten().tolist() == [3]


def test_splits_and_memory() -> None:
    """Forward lays out two numbers a query and split: never the logits [100, 5,000]."""
    inputs = make_inputs(100, 5000, 8)
    num_splits = -(-5000 // triton_blocks._split_rows(100, 5000, torch.device("cpu")))
    assert num_splits == 8
    lengths = inverse_lengths(inputs)
    with LargestTensor() as largest:
        triton_blocks.reduce_classes(inputs.queries, inputs.centres, lengths, None, inputs.columns)
    # the interpreter looks at the inputs as bytes, so the class centres [5,000, 8] are the largest thing
    assert largest.num_elements == 5000 * 8 * 4


@pytest.mark.parametrize("dim", [1, 8, 512, 700])
@pytest.mark.parametrize("types", [(FP32, FP32), (FP32, BF16), (BF16, FP32)], ids=str)
def test_through_normalisation(dim: int, types: tuple[torch.dtype, torch.dtype]) -> None:
    generator = torch.Generator().manual_seed(dim)
    gradient = torch.randn(7, dim, generator=generator).to(types[0])
    centres = (0.1 * torch.randn(7, dim, generator=generator)).to(types[1])
    leaf = centres.double().requires_grad_()
    functional.normalize(leaf, dim=1).backward(gradient.double())
    lengths = centres.float().norm(dim=1).reciprocal()
    # what is left where there is but one direction is nothing but rounding
    size = float((gradient.double() * lengths[:, None].double()).norm())
    triton_blocks.through_normalisation_(gradient, centres, lengths)
    assert leaf.grad is not None
    assert (gradient.double() - leaf.grad).norm() <= (1e-6 if types[0] == FP32 else 2**-8) * size
