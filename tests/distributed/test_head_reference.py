"""The sharded head against the dense float64 reference: loss, gradients and metrics on 1, 2 and 4 ranks."""

from __future__ import annotations

import functools
from typing import get_args

import pytest
import torch
from torch import Tensor

from pipeline.config.heads import MarginSoftmaxConfig
from pipeline.config.margins import MarginConfig, UnifiedMargin
from tests.distributed.processes import run_ranks
from tests.losses.head_cases import CASES, MARGINS, Case, Result, make_batch, on_this_rank_all
from tests.losses.reference import dense

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


@functools.cache
def results(world_size: int) -> list[list[Result]]:
    """Results of all cases by rank; one launch for all of them."""
    if world_size == 1:
        return [on_this_rank_all(CASES)]
    return run_ranks(on_this_rank_all, world_size, CASES)


@functools.cache
def reference(number: int) -> Result:
    return dense(CASES[number], make_batch(CASES[number]))


def assert_close(found: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    assert found.shape == expected.shape, what
    error, size = (found.double() - expected).norm(), expected.norm()
    assert error <= tolerance * size or error <= 1e-20, f"{what}: error {error:.3g} of {size:.3g}"


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("number", range(len(CASES)), ids=[case.name for case in CASES])
def test_equals_dense(number: int, world_size: int) -> None:
    case: Case = CASES[number]
    ranks = [by_case[number] for by_case in results(world_size)]
    expected, tolerance = reference(number), TOLERANCE[case.dtype]
    for rank in ranks:
        assert rank.loss.dtype == case.dtype
        assert torch.equal(rank.loss, ranks[0].loss), "the loss must be bit-equal on all ranks"
        assert all(torch.equal(value, ranks[0].metrics[name]) for name, value in rank.metrics.items())
        assert all(torch.equal(value, ranks[0].margin[name]) for name, value in rank.margin.items())
    assert_close(ranks[0].loss, expected.loss, tolerance, "loss")
    assert_close(torch.cat([rank.embeddings for rank in ranks]), expected.embeddings, tolerance, "embeddings")
    assert_close(torch.cat([rank.centres for rank in ranks]), expected.centres, tolerance, "class centres")
    if ranks[0].bias is not None:
        assert expected.bias is not None
        biases = [rank.bias for rank in ranks if rank.bias is not None]
        assert_close(torch.cat(biases), expected.bias, tolerance, "bias")
    assert ranks[0].margin.keys() == expected.margin.keys()
    for name, value in expected.margin.items():
        assert_close(ranks[0].margin[name], value.double(), tolerance, name)
    if case.rounds == 1:
        assert ranks[0].metrics.keys() == expected.metrics.keys()
        for name, value in expected.metrics.items():
            assert_close(ranks[0].metrics[name], value, tolerance, name)


def test_every_margin_has_its_cases() -> None:
    assert {type(margin) for _, margin in MARGINS} == set(get_args(get_args(MarginConfig)[0]))


def test_smoothing_needs_a_softmax() -> None:
    with pytest.raises(ValueError, match="label_smoothing smooths a softmax, which margin 'unified' does not have"):
        MarginSoftmaxConfig(margin=UnifiedMargin(), label_smoothing=0.1)


def test_cases_reach_the_corners() -> None:
    """Were all target cosines small, half of the cases above would test nothing."""
    case = next(case for case in CASES if case.name == "arcface")
    batch = make_batch(case)
    centres = batch.centres[batch.labels.clamp(0, 36), 0]
    cosine = torch.nn.functional.cosine_similarity(batch.embeddings, centres)[batch.valid]
    assert cosine.min() < -0.95
    assert cosine.max() > 0.95
    assert 0 < dense(case, batch).metrics["past_pi_share"] < 0.5
    assert (~batch.valid).any()
    assert len(set(batch.labels.tolist())) < len(batch.labels)
