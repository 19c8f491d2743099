"""The walk over class blocks: its derivative, its independence of the block size, and its memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.config.margins import ArcFaceMargin, MarginConfig, SoftmaxMargin
from pipeline.model.class_blocks import WalkOptions, target_product, walk_classes
from pipeline.model.margins.base import build_margin
from pipeline.model.partial_fc import MarginSoftmaxHead

NUM_QUERIES, NUM_CLASSES, DIM = 6, 7, 4


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(NUM_QUERIES, DIM, generator=generator, dtype=torch.float64)
    centres = torch.randn(NUM_CLASSES, DIM, generator=generator, dtype=torch.float64)
    bias = torch.randn(NUM_CLASSES, generator=generator, dtype=torch.float64)
    # −1: a query whose target another rank would own
    return queries, centres, bias, torch.tensor([0, 6, 3, 3, -1, 2])


@pytest.mark.parametrize("transform", [None, lambda z: 0.1 * z**2 + z], ids=["linear", "transformed"])
@pytest.mark.parametrize("block_rows", [1, 3, NUM_CLASSES])
@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
def test_gradcheck(
    transform: Callable[[Tensor], Tensor] | None, block_rows: int, normalise: bool, has_bias: bool
) -> None:
    queries, centres, bias, columns = inputs()
    options = WalkOptions(normalise, block_rows, transform)

    def walk(queries: Tensor, centres: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        own_bias = rest[0] if rest else None
        target = target_product(queries, centres, own_bias, columns, normalise)
        return walk_classes(queries, centres, own_bias, columns, target, options)[:2]

    leaves = [queries, centres, *([bias] if has_bias else [])]
    assert torch.autograd.gradcheck(walk, [leaf.requires_grad_() for leaf in leaves])


@pytest.mark.parametrize("block_rows", [1, 2, 5, NUM_CLASSES, 100])
def test_values_do_not_depend_on_the_block(block_rows: int) -> None:
    queries, centres, bias, columns = inputs()
    logits = queries @ centres.t() + bias
    target = target_product(queries, centres, bias, columns, normalise=False)
    found = walk_classes(queries, centres, bias, columns, target, WalkOptions(False, block_rows, None))
    negatives = logits.clone()
    for row, column in enumerate(columns.tolist()):
        if column >= 0:
            assert found[0][row].item() == pytest.approx(logits[row, column].item(), rel=1e-14)
            negatives[row, column] = -torch.inf
    assert torch.allclose(found[1], negatives.logsumexp(1), rtol=1e-14, atol=0)
    assert torch.equal(found[2], negatives.amax(1)) or torch.allclose(found[2], negatives.amax(1), rtol=1e-14)


class LargestTensor(TorchDispatchMode):
    """Records how many elements the largest tensor has that any operation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.num_elements = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.num_elements = max(self.num_elements, leaf.numel())
        return result


@pytest.mark.parametrize("config", [ArcFaceMargin(), SoftmaxMargin()], ids=lambda c: c.kind)
def test_logits_are_never_laid_out(config: MarginConfig) -> None:
    batch, num_classes, dim = 512, 3000, 16
    head = MarginSoftmaxHead(num_classes, dim, build_margin(config), seed=0, block_bytes=64 * 1024)
    embeddings = torch.randn(batch, dim, requires_grad=True)
    labels, valid = torch.arange(batch), torch.ones(batch, dtype=torch.bool)
    with LargestTensor() as largest:
        head(embeddings, labels, labels, valid, 0).loss.backward()
    # the class centres themselves are the largest thing; the logits would be 512 · 3000
    assert largest.num_elements == num_classes * dim


@pytest.mark.parametrize("batch", [1, 64, 1024])
@pytest.mark.parametrize("dim", [8, 512])
def test_default_blocks_stay_within_their_budget(batch: int, dim: int) -> None:
    head = MarginSoftmaxHead(4, dim, build_margin(ArcFaceMargin()), seed=0)
    rows = head._block_rows(torch.empty(batch, dim))
    assert rows * max(batch, dim) * 4 <= 16 * 2**20
    assert rows >= 64
