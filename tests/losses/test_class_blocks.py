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
from pipeline.model.class_blocks import Reduction, WalkOptions
from pipeline.model.class_walk import target_product, walk_classes
from pipeline.model.margins.base import build_margin
from pipeline.model.partial_fc import HeadOptions, MarginSoftmaxHead

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
@pytest.mark.parametrize("keep_bytes", [0, 8 * NUM_QUERIES, 10**6])
@pytest.mark.parametrize("reduction", ["log_sum_exp", "softplus_sum"])
def test_gradcheck(
    transform: Callable[[Tensor], Tensor] | None,
    block_rows: int,
    normalise: bool,
    has_bias: bool,
    keep_bytes: int,
    reduction: Reduction,
) -> None:
    queries, centres, bias, columns = inputs()
    options = WalkOptions(normalise, block_rows, keep_bytes, transform, reduction)

    def walk(queries: Tensor, centres: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        own_bias = rest[0] if rest else None
        target = target_product(queries, centres, own_bias, columns, options)
        return walk_classes(queries, centres, own_bias, columns, target, options)[:2]

    leaves = [queries, centres, *([bias] if has_bias else [])]
    assert torch.autograd.gradcheck(walk, [leaf.requires_grad_() for leaf in leaves])


@pytest.mark.parametrize("block_rows", [1, 2, 5, NUM_CLASSES, 100])
def test_values_do_not_depend_on_the_block(block_rows: int) -> None:
    queries, centres, bias, columns = inputs()
    logits = queries @ centres.t() + bias
    options = WalkOptions(False, block_rows)
    target = target_product(queries, centres, bias, columns, options)
    found = walk_classes(queries, centres, bias, columns, target, options)
    negatives = logits.clone()
    for row, column in enumerate(columns.tolist()):
        if column >= 0:
            assert found[0][row].item() == pytest.approx(logits[row, column].item(), rel=1e-14)
            negatives[row, column] = -torch.inf
    assert torch.allclose(found[1], negatives.logsumexp(1), rtol=1e-14, atol=0)
    assert torch.equal(found[2], negatives.amax(1)) or torch.allclose(found[2], negatives.amax(1), rtol=1e-14)


def test_a_second_backward_pass_forms_what_the_first_used_up() -> None:
    queries, centres, _, columns = inputs()
    options = WalkOptions(True, 3, keep_bytes=10**6)
    target = target_product(queries, centres, None, columns, options)
    leaf = centres.clone().requires_grad_()
    reduced = walk_classes(queries, leaf, None, columns, target, options).reduced.sum()
    (first,) = torch.autograd.grad(reduced, leaf, retain_graph=True)
    (second,) = torch.autograd.grad(reduced, leaf)
    torch.testing.assert_close(first, second, rtol=1e-12, atol=0)


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
    options = HeadOptions(block_bytes=64 * 1024)
    head = MarginSoftmaxHead(num_classes, dim, build_margin(config, num_classes), seed=0, options=options)
    embeddings = torch.randn(batch, dim, requires_grad=True)
    labels, valid = torch.arange(batch), torch.ones(batch, dtype=torch.bool)
    with LargestTensor() as largest:
        head(embeddings, labels, labels, valid, 0).loss.backward()
    # the class centres themselves are the largest thing; the logits would be 512 · 3000
    assert largest.num_elements == num_classes * dim


@pytest.mark.parametrize("batch", [1, 64, 1024])
@pytest.mark.parametrize("dim", [8, 512])
@pytest.mark.parametrize("num_subcentres", [1, 3])
def test_default_blocks_stay_within_their_budget(batch: int, dim: int, num_subcentres: int) -> None:
    options = HeadOptions(num_subcentres=num_subcentres)
    head = MarginSoftmaxHead(4, dim, build_margin(ArcFaceMargin(), 4), seed=0, options=options)
    found = head._walk_options(torch.empty(batch, dim))
    assert found.block_rows * num_subcentres * (batch + dim) * 4 <= 4 * 2**20
    assert found.block_rows >= 16


def test_kept_blocks_stay_within_their_budget() -> None:
    queries, centres, _, columns = inputs()
    size = 2 * NUM_QUERIES * 8
    for keep_bytes, num_kept in ((0, 0), (size - 1, 0), (size, 1), (3 * size, 3), (10**6, 4)):
        options = WalkOptions(False, 2, keep_bytes=keep_bytes)
        leaf = centres.clone().requires_grad_()
        target = target_product(queries, leaf, None, columns, options)
        node = walk_classes(queries, leaf, None, columns, target, options).reduced.grad_fn
        assert node is not None
        assert len(node.kept) == num_kept
