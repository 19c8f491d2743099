"""A class centres' gradient takes the memory of the one before, and nothing else changes."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.config.heads import MarginSoftmaxConfig
from pipeline.config.margins import SoftmaxMargin
from pipeline.config.optim import SGDConfig
from pipeline.engine.head_optim import HeadOptimizer
from pipeline.model import gradient_memory
from pipeline.model.gradient_memory import discard_gradient, kept_bytes, new_gradient
from pipeline.model.head import Head, build_head

CLASSES, DIM, BATCH = 50, 16, 8
BYTES = 4 * CLASSES * DIM


@pytest.fixture
def every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradient_memory, "MMAP_THRESHOLD_BYTES", 0)


def make(**options: Any) -> tuple[Head, HeadOptimizer]:
    head = build_head(MarginSoftmaxConfig(**options), CLASSES, DIM, seed=0)
    return head, HeadOptimizer(SGDConfig(lr=0.1, momentum=0.9, weight_decay=1e-3), head)


def backward(head: Head, number: int) -> None:
    generator = torch.Generator().manual_seed(number)
    embeddings = torch.randn(BATCH, DIM, generator=generator, requires_grad=True)
    labels, valid = torch.randint(0, CLASSES, (BATCH,), generator=generator), torch.ones(BATCH, dtype=torch.bool)
    head.begin_step(labels, valid, step=number, epoch=0.0)
    head(embeddings, labels, torch.arange(BATCH), valid, step=number).loss.backward()


def gradient(head: Head) -> Tensor:
    found = head.get_parameter("class_centres").grad
    assert found is not None
    return found


def train(num_micro_batches: int, looks: Callable[[Head], None], **options: Any) -> Tensor:
    head, optimizer = make(**options)
    for step in range(4):
        for micro_batch in range(num_micro_batches):
            backward(head, 10 * step + micro_batch)
        looks(head)
        optimizer.step(0.1, torch.zeros(()), None)
    return head.get_parameter("class_centres").detach()


@pytest.mark.parametrize("options", [{}, {"num_subcentres": 3}, {"frozen_classes": 5}], ids=str)
@pytest.mark.parametrize("num_micro_batches", [1, 3])
def test_the_weights_are_those_of_gradients_made_anew(
    num_micro_batches: int, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    monkeypatch.setattr(gradient_memory, "in_huge_pages", lambda tensor: made.append(tensor.numel()) or tensor)
    expected = train(num_micro_batches, lambda head: None, **options)
    assert len(made) == 4 * num_micro_batches  # such small ones are not kept
    made.clear()
    monkeypatch.setattr(gradient_memory, "MMAP_THRESHOLD_BYTES", 0)
    places: set[int] = set()
    found = train(num_micro_batches, lambda head: places.add(gradient(head).data_ptr()), **options)
    assert torch.equal(found, expected)
    assert len(places) == 1
    assert len(made) == 4 * num_micro_batches - 3  # the first of each step but the first one is not


@pytest.mark.usefixtures("every_size")
def test_what_is_kept_of_biases_is_taken_again() -> None:
    head, optimizer = make(margin=SoftmaxMargin())
    bias = head.get_parameter("bias")
    backward(head, 1)
    optimizer.zero_grad()
    assert kept_bytes(bias) == 4 * CLASSES
    backward(head, 1)
    assert kept_bytes(bias) == 0


@pytest.mark.usefixtures("every_size")
def test_what_no_step_takes_again_is_not_kept() -> None:
    head, optimizer = make(sample_rate=0.5)
    before = len(gradient_memory._spare)
    backward(head, 1)
    optimizer.step(0.1, torch.zeros(()), None)
    assert len(gradient_memory._spare) == before
    assert all(rows.leaf.grad is None for rows in head.active_rows().values())


@pytest.mark.usefixtures("every_size")
def test_a_gradient_in_use_is_not_overwritten() -> None:
    head, optimizer = make()
    backward(head, 1)
    optimizer.zero_grad()
    assert kept_bytes(head.get_parameter("class_centres")) == BYTES
    backward(head, 1)
    first = gradient(head).clone()
    assert kept_bytes(head.get_parameter("class_centres")) == 0
    backward(head, 2)
    both = gradient(head).clone()
    optimizer.zero_grad()
    backward(head, 2)
    torch.testing.assert_close(both, first + gradient(head))


@pytest.mark.usefixtures("every_size")
def test_what_does_not_fit_is_not_taken() -> None:
    parameter = torch.nn.Parameter(torch.zeros(4, 3))
    parameter.grad = torch.ones(4, 3)
    discard_gradient(parameter)
    assert parameter.grad is None
    parameter.data = torch.zeros(5, 3)  # it has grown: there are new people
    assert new_gradient(parameter, parameter).shape == (5, 3)
    parameter.grad = torch.ones(5, 3)
    discard_gradient(parameter)
    parameter.data = torch.zeros(5, 3, dtype=torch.float64)
    assert new_gradient(parameter, parameter).dtype == torch.float64


@pytest.mark.usefixtures("every_size")
def test_the_memory_goes_with_its_parameter() -> None:
    before = len(gradient_memory._spare)
    parameter = torch.nn.Parameter(torch.zeros(4, 3))
    parameter.grad = torch.ones(4, 3)
    discard_gradient(parameter)
    assert len(gradient_memory._spare) == before + 1
    del parameter
    gc.collect()
    assert len(gradient_memory._spare) == before
