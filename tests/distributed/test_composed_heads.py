"""Centre loss, distillation, harmonic triplets and sums on 1, 2 and 4 ranks, held against plain float64 versions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline import checkpoint
from pipeline.config.heads import CentreConfig, HarmonicConfig, HeadPart, MarginSoftmaxConfig, SumConfig
from pipeline.config.margins import CosFaceMargin, SoftmaxMargin
from pipeline.config.metric_heads import TripletConfig
from pipeline.config.teacher_heads import CosineTarget, DistillationConfig, L2Target, LogitTarget
from tests.distributed.processes import run_ranks
from tests.losses.composed_reference import TEACHER, Case, Trace, reference, sharded_names, train, train_all

CENTRE = CentreConfig(strength=0.5, centre_rate=0.5)
SOFTMAX = MarginSoftmaxConfig(margin=CosFaceMargin(scale=8, margin=0.2), block_bytes=2048)
COSINE = DistillationConfig(teacher=TEACHER, target=CosineTarget())
LOGITS = DistillationConfig(teacher=TEACHER, target=LogitTarget(temperature=2, block_bytes=1024))
HARMONIC = HarmonicConfig(teacher=TEACHER, margin=0.4, block_bytes=1024)
JOINT = SumConfig(parts={"softmax": HeadPart(head=SOFTMAX), "centre": HeadPart(weight=0.3, head=CENTRE)})
BACK = SumConfig(
    parts={
        "softmax": HeadPart(weight=[(0, 0), (1, 0), (2, 0.5)], head=SOFTMAX),
        "centre": HeadPart(weight=[(0, 1), (1, 0.7), (2, 0)], head=CENTRE),
    }
)
HANDOVER = SumConfig(
    parts={
        "softmax": HeadPart(weight=[(0, 1), (1, 0.5), (2, 0)], head=SOFTMAX),
        "centre": HeadPart(weight=[(0, 0), (1, 0.7), (2, 2)], head=CENTRE),
    }
)
SOFTMAX_THEN_TRIPLET = SumConfig(
    parts={
        "softmax": HeadPart(weight=[(0, 1), (1, 0.5), (2, 0)], head=SOFTMAX),
        "triplet": HeadPart(weight=[(0, 0), (1, 0.5), (2, 1)], head=TripletConfig(margin=0.5, block_bytes=1024)),
    }
)
EVERYTHING = SumConfig(
    parts={
        "softmax": HeadPart(weight=0.5, head=SOFTMAX),
        "centre": HeadPart(weight=0.3, head=CENTRE),
        "likeness": HeadPart(weight=2.0, head=COSINE),
        "opinion": HeadPart(weight=0.1, head=LOGITS),
        "harmonic": HeadPart(weight=1.0, head=HARMONIC),
    }
)
CASES = [
    Case("centre", CENTRE),
    Case("centre-normalised", CENTRE.model_copy(update={"normalise": True})),
    Case("centre-no-mask", CENTRE, bad_slots="none"),
    Case("centre-all-masked", CENTRE, bad_slots="all"),
    Case("centre-one-class", CENTRE, num_classes=1),
    Case("centre-one-identity", CENTRE, labels="one"),
    Case("centre-one-rank", CENTRE, labels="low"),
    Case("centre-empty-partition", CENTRE, num_classes=5),
    Case("joint", JOINT),
    Case("joint-all-masked", JOINT, bad_slots="all"),
    Case("handover", HANDOVER),
    Case("back", BACK),
    Case("softmax-then-triplet", SOFTMAX_THEN_TRIPLET),
    Case("cosine", COSINE),
    Case("cosine-projected", COSINE, teacher_dim=10),
    Case("l2", COSINE.model_copy(update={"target": L2Target()})),
    Case("l2-projected-up", COSINE.model_copy(update={"target": L2Target()}), teacher_dim=20),
    Case("logits", LOGITS),
    Case("logits-projected", LOGITS, teacher_dim=10),
    Case("logits-softmax-teacher", LOGITS, teacher_margin=SoftmaxMargin()),
    Case("logits-one-block", LOGITS.model_copy(update={"target": LogitTarget(temperature=2)})),
    Case("logits-empty-partition", LOGITS, num_classes=5),
    Case("logits-one-class", LOGITS, num_classes=1),
    Case("logits-all-masked", LOGITS, bad_slots="all"),
    Case("harmonic", HARMONIC),
    Case("harmonic-one-block", HARMONIC.model_copy(update={"block_bytes": None})),
    Case("harmonic-one-identity", HARMONIC, labels="one"),
    Case("harmonic-all-masked", HARMONIC, bad_slots="all"),
    Case("everything", EVERYTHING),
    Case("everything-projected", SumConfig(parts=dict(list(EVERYTHING.parts.items())[:4])), teacher_dim=10),
]
ALL_CASES = [*CASES, *(replace(case, dtype=torch.float32) for case in CASES)]


@functools.cache
def traces(world_size: int) -> list[list[Trace]]:
    """Of all cases in both types, by rank; one launch for all of them."""
    return launch(world_size, train_all, ALL_CASES)


@functools.cache
def expected(number: int) -> Trace:
    return reference(CASES[number])


def assert_close(found: Tensor, wanted: Tensor, tolerance: float, what: str) -> None:
    assert found.shape == wanted.shape, what
    error, size = (found.double() - wanted.double()).norm(), wanted.double().norm()
    assert error <= tolerance * size or error <= 1e-14, f"{what}: error {error:.3g} of {size:.3g}"


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("number", range(len(CASES)), ids=[case.name for case in CASES])
def test_three_steps_equal_the_reference(number: int, world_size: int) -> None:
    ranks, wanted = [by_case[number] for by_case in traces(world_size)], expected(number)
    sharded = sharded_names(CASES[number])
    for step, loss in enumerate(wanted.losses):
        for rank in ranks:
            assert torch.equal(rank.losses[step], ranks[0].losses[step]), "the loss must be bit-equal on all ranks"
            for name, value in rank.metrics[step].items():
                assert value.isfinite()
                assert torch.equal(value, ranks[0].metrics[step][name])
                assert_close(value, traces(1)[0][number].metrics[step][name], 1e-10, name)
        assert_close(ranks[0].losses[step], loss, 1e-10, f"loss of step {step}")
        gradient = torch.cat([rank.gradients[step] for rank in ranks])
        assert_close(gradient, wanted.gradients[step], 1e-10, f"embeddings' gradient of step {step}")
    for name, value in wanted.tensors.items():
        found = [rank.tensors[name] for rank in ranks]
        if name not in sharded:
            assert all(torch.equal(other, found[0]) for other in found), f"replicas of {name} differ"
        assert_close(torch.cat(found) if name in sharded else found[0], value, 1e-10, name)
    if "all-masked" not in CASES[number].name:
        assert wanted.losses[0] > 0 or "one-" in CASES[number].name


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("number", range(len(CASES)), ids=[case.name for case in CASES])
def test_float32_agrees_between_numbers_of_ranks(number: int, world_size: int) -> None:
    one, ranks = traces(1)[0][len(CASES) + number], [by_case[len(CASES) + number] for by_case in traces(world_size)]
    sharded = sharded_names(CASES[number])
    for step, loss in enumerate(one.losses):
        assert loss.dtype == torch.float32
        assert_close(loss, expected(number).losses[step], 1e-5, f"loss of step {step}")
        assert_close(ranks[0].losses[step], loss, 1e-6, f"loss of step {step}")
        gradient = torch.cat([rank.gradients[step] for rank in ranks])
        assert_close(gradient, one.gradients[step], 1e-6, f"embeddings' gradient of step {step}")
    for name, value in one.tensors.items():
        found = torch.cat([rank.tensors[name] for rank in ranks]) if name in sharded else ranks[0].tensors[name]
        # masked slots hold NaN
        assert torch.equal(found.isnan(), value.isnan())
        assert_close(found.nan_to_num(), value.nan_to_num(), 1e-6, name)


@pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 2), (2, 1), (2, 4)])
def test_a_checkpoint_in_the_middle_changes_nothing(tmp_path: Path, before: int, after: int) -> None:
    names = ("centre", "joint", "back", "l2-projected-up", "everything")
    numbers = [number for number, case in enumerate(CASES) if case.name in names]
    assert len(numbers) == len(names)
    launch(before, save_in_the_middle, numbers, tmp_path)
    continued = launch(after, go_on, numbers, tmp_path)
    for place, number in enumerate(numbers):
        sharded = sharded_names(CASES[number])
        undisturbed = [by_case[number] for by_case in traces(after)]
        resumed = [by_case[place] for by_case in continued]
        for name in undisturbed[0].tensors:
            found, wanted = (
                torch.cat([rank.tensors[name] for rank in ranks]) if name in sharded else ranks[0].tensors[name]
                for ranks in (resumed, undisturbed)
            )
            assert torch.equal(found.isnan(), wanted.isnan())
            found, wanted = found.nan_to_num(), wanted.nan_to_num()
            assert torch.equal(found, wanted) or before != after, name
            assert_close(found, wanted, 1e-10, name)


def save_in_the_middle(numbers: list[int], directory: Path) -> list[Trace]:
    return [train(CASES[number], num_steps=2, save=directory / str(number)) for number in numbers]


def go_on(numbers: list[int], directory: Path) -> list[Trace]:
    paths = {number: checkpoint.find_checkpoint(directory / str(number)) for number in numbers}
    return [train(CASES[number], load=path) for number, path in paths.items()]


def launch(world_size: int, fn: Callable[..., list[Trace]], *args: object) -> list[list[Trace]]:
    return [fn(*args)] if world_size == 1 else run_ranks(fn, world_size, *args)
