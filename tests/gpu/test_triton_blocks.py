"""The Triton kernels on a GPU, at the sizes they are for."""

from __future__ import annotations

import pytest
import torch

from pipeline.model import triton_blocks
from tests.losses.triton_reference import Inputs, composed, dense, differences, inverse_lengths, make_inputs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
FP32, BF16 = torch.float32, torch.bfloat16
BLOCK_ROWS = 16_384


@pytest.mark.parametrize(
    "shape", [(1024, 50_003, 512), (4096, 10_000, 512), (256, 100_000, 128), (77, 3001, 200)], ids=str
)
@pytest.mark.parametrize("types", [(FP32, FP32), (BF16, FP32), (BF16, BF16)], ids=str)
@pytest.mark.parametrize("has_bias", [False, True])
def test_whole_step(shape: tuple[int, int, int], types: tuple[torch.dtype, torch.dtype], has_bias: bool) -> None:
    """Inputs are the same numbers in every type, so what differs is the kernels' own: fp32, or G rounded to bf16."""
    inputs = make_inputs(*shape, has_bias=has_bias, device="cuda")
    for name, error in differences(composed(inputs.to(*types), BLOCK_ROWS), dense(inputs)).items():
        is_rounded = types[0] == BF16 and name in ("queries", "centres", "bias")
        assert error < (2**-8 if is_rounded else 1e-5), name


def test_tf32() -> None:
    """Thirteen bits cut off each input: up to 2⁻¹⁰ of it, always towards 0, so logits of up to 16 lose about 0.01."""
    inputs = make_inputs(1024, 50_003, 512, device="cuda")
    for tensor in (inputs.queries, inputs.centres):
        tensor.mul_(1.001)  # no longer what bfloat16, and so TF32, holds exactly
    found = differences(composed(inputs, BLOCK_ROWS, "tf32"), dense(inputs))
    for name, error in found.items():
        assert error < 1e-2, name
    assert found["negative_lse"] > 1e-5, "these were exact products"


def test_one_class() -> None:
    found = composed(make_inputs(300, 1, 512, device="cuda"), BLOCK_ROWS)
    assert found.queries.isfinite().all()
    assert found.centres.isfinite().all()


def test_class_centres_past_int32() -> None:
    """4.3 million times 512 elements: only the last row is not 0, and is found."""
    num_rows, dim = 4_300_000, 512
    centres = torch.zeros(num_rows, dim, dtype=BF16, device="cuda")
    centres[-1, :2] = 1
    queries = torch.zeros(64, dim, dtype=BF16, device="cuda")
    queries[:, 1] = torch.arange(64)
    columns = torch.full((64,), -1, device="cuda")
    lengths = torch.ones(num_rows, device="cuda")
    greatest, total = triton_blocks.reduce_classes(queries, centres, lengths, None, columns)
    expected = torch.arange(64.0, device="cuda")
    assert torch.equal(greatest, expected)
    assert torch.allclose(total, 1 + (num_rows - 1) * (-expected).exp())
    ones = torch.ones(64, device="cuda")
    gradient = triton_blocks.classes_gradient(
        queries, centres, lengths, None, columns, expected, ones, ones, num_rows - 130, num_rows, FP32
    )
    assert torch.allclose(gradient[:, -1], ones)
    assert torch.allclose(gradient[:, :-1], (-expected).exp()[:, None].expand(-1, 129))


def test_gradient_past_int32() -> None:
    """4,096 queries times 600,000 classes in one block: 2.5 billion elements, 5 GB."""
    num_queries, num_rows = 4096, 600_000
    inputs = make_inputs(num_queries, num_rows, 16, device="cuda").to(BF16, BF16)
    lengths = inverse_lengths(inputs)
    zeros = torch.zeros(num_queries, device="cuda")
    gradient = triton_blocks.classes_gradient(
        inputs.queries, inputs.centres, lengths, None, inputs.columns, zeros + 9, zeros + 1, zeros, 0, num_rows, BF16
    )
    for query in (0, num_queries // 2, num_queries - 1):
        logits = (inputs.centres.float() * lengths[:, None]) @ inputs.queries[query].float()
        expected = (logits - 9).exp()
        if inputs.columns[query] >= 0:
            expected[inputs.columns[query]] = 0
        assert torch.allclose(gradient[query].float(), expected, rtol=2**-7, atol=0)


def test_memory_and_repetition() -> None:
    """Forward holds two numbers a query and split, and gives the same bits again."""
    inputs = make_inputs(1024, 200_000, 512, device="cuda").to(BF16, FP32)
    arguments = (inputs.queries, inputs.centres, inverse_lengths(inputs), None, inputs.columns)
    first = triton_blocks.reduce_classes(*arguments)  # chooses its tile
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    second = triton_blocks.reduce_classes(*arguments)
    assert torch.cuda.max_memory_allocated() - before < 8 * 2**20
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


def test_not_the_current_device() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    inputs = make_inputs(100, 3000, 64, device="cuda:1")
    with torch.cuda.device(0):
        found = composed(inputs, BLOCK_ROWS)
    for name, error in differences(found, dense(inputs)).items():
        assert error < 1e-5, name


def test_is_available() -> None:
    assert triton_blocks.is_available(torch.device("cuda")) == (torch.cuda.get_device_capability() >= (8, 0))


def test_an_empty_partition() -> None:
    queries = torch.ones(3, 8, device="cuda")
    inputs = Inputs(queries, queries[:0], None, torch.full((3,), -1, device="cuda"), normalise=True)
    lengths = inverse_lengths(inputs)
    greatest, total = triton_blocks.reduce_classes(queries, inputs.centres, lengths, None, inputs.columns)
    assert greatest.tolist() == [-torch.inf] * 3
    assert total.tolist() == [0] * 3
