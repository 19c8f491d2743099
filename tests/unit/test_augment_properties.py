"""What holds of augmentation's draws for any configuration: hypothesis makes the trees."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.augment import (
    Affine,
    AllOf,
    Augmentation,
    Blur,
    ColourJitter,
    Equalize,
    Erase,
    Flip,
    Grey,
    Hsv,
    Jpeg,
    LowResolution,
    OneOf,
    Posterize,
    RandomResizedCrop,
)
from pipeline.config.decoder import CpuDecoder, DaliDecoder
from pipeline.data import loader as loader_module
from pipeline.data.augment import Step, draw_steps
from pipeline.data.decode_cpu import CpuBatchDecoder
from pipeline.data.decode_dali import DaliBatchDecoder
from pipeline.data.decoder import Decoder, make_decoder
from pipeline.data.manifest import open_dataset
from pipeline.data.stage_times import StageTimes
from tests.datasets import encode_jpeg, make_dataset, random_image
from tests.loading import make_loader

CROP_PX = 32
SHARES = st.floats(0, 1)
SEEDS = st.integers(0, 2**63)
POSITIONS = st.integers(0, 2**50)


def rising(low: Any, high: Any) -> st.SearchStrategy[tuple[Any, Any]]:
    """Pairs of numbers between two of their kind, the smaller first."""
    numbers = st.integers(low, high) if isinstance(low, int) else st.floats(low, high)
    return st.tuples(numbers, numbers).map(lambda pair: (min(pair), max(pair)))


EXACT = [
    st.builds(Flip, probability=SHARES),
    st.builds(Posterize, probability=SHARES, bits=rising(1, 8)),
    st.builds(Equalize, probability=SHARES),
    st.builds(Jpeg, probability=SHARES, quality=rising(1, 100)),
    st.builds(Erase, probability=SHARES, area=rising(0.0, 1.0), aspect=rising(0.1, 10.0), fill=st.integers(0, 255)),
]
"""Operations of which both decoders make the same pixels to the bit."""
OTHERS = [
    st.builds(RandomResizedCrop, probability=SHARES, area=rising(0.01, 1.0), aspect=rising(0.1, 10.0)),
    st.builds(
        Affine,
        probability=SHARES,
        rotate_degrees=st.floats(0, 180),
        translate=SHARES,
        scale=rising(0.1, 10.0),
        shear_degrees=st.floats(0, 80),
    ),
    st.builds(ColourJitter, probability=SHARES, brightness=SHARES, contrast=SHARES, saturation=SHARES),
    st.builds(Hsv, probability=SHARES, hue_degrees=st.floats(0, 180), saturation=SHARES, value=SHARES),
    st.builds(Grey, probability=SHARES),
    st.builds(Blur, probability=SHARES, sigma_px=rising(0.01, 20.0)),
    st.builds(LowResolution, probability=SHARES, side=rising(0.01, 1.0)),
]


def with_parts(parts: st.SearchStrategy[Augmentation]) -> st.SearchStrategy[Augmentation]:
    """`one_of`, with and without weights, and `all_of`."""
    weighted = st.lists(st.tuples(parts, st.floats(0.01, 100)), min_size=1, max_size=4)
    several = st.lists(parts, min_size=1, max_size=4)
    return st.one_of(
        st.builds(lambda p, listed: OneOf(probability=p, operations=tuple(listed)), SHARES, several),
        st.builds(
            lambda p, listed: OneOf(
                probability=p, operations=tuple(part for part, _ in listed), weights=tuple(w for _, w in listed)
            ),
            SHARES,
            weighted,
        ),
        st.builds(lambda p, listed: AllOf(probability=p, operations=tuple(listed)), SHARES, several),
    )


def lists_of(leaves: Sequence[st.SearchStrategy[Any]]) -> st.SearchStrategy[list[Augmentation]]:
    return st.lists(st.recursive(st.one_of(*leaves), with_parts, max_leaves=6), min_size=1, max_size=3)


TREES = lists_of([*EXACT, *OTHERS])


def leaves_of(operations: Sequence[Augmentation], share: float = 1.0) -> Iterator[tuple[Any, float]]:
    """Each operation without parts, in order, and the share of photos that undergo it."""
    for operation in operations:
        own = share * operation.probability
        if isinstance(operation, AllOf):
            yield from leaves_of(operation.operations, own)
        elif isinstance(operation, OneOf):
            weights = operation.weights or (1.0,) * len(operation.operations)
            for part, weight in zip(operation.operations, weights, strict=True):
                yield from leaves_of([part], own * weight / sum(weights))
        else:
            yield operation, own


def plain(steps: Sequence[Step], slots: Any) -> list[tuple[str, list[bool], dict[str, list[float]]]]:
    return [
        (step.kind, step.is_on[slots].tolist(), {name: drawn[slots].tolist() for name, drawn in step.values.items()})
        for step in steps
    ]


@settings(max_examples=60, deadline=None)
@given(operations=TREES, seed=SEEDS, start=POSITIONS, order=st.permutations(range(16)))
def test_draws_depend_on_seed_and_position_only(
    operations: list[Augmentation], seed: int, start: int, order: list[int]
) -> None:
    positions = np.arange(start, start + 16)
    whole = draw_steps(operations, seed, positions, CROP_PX)
    assert plain(draw_steps(operations, seed, positions[order], CROP_PX), slice(None)) == plain(whole, order)
    one = order[0]
    assert plain(draw_steps(operations, seed, positions[[one]], CROP_PX), slice(None)) == plain(whole, [one])
    # what stands behind an operation in the list changes nothing of it
    longer = draw_steps([*operations, Blur()], seed, positions, CROP_PX)
    assert plain(longer[: len(whole)], slice(None)) == plain(whole, slice(None))


@settings(max_examples=60, deadline=None)
@given(operations=TREES, seed=SEEDS, start=POSITIONS)
def test_operations_are_applied_as_often_as_probabilities_and_weights_say(
    operations: list[Augmentation], seed: int, start: int
) -> None:
    count = 4000
    steps = draw_steps(operations, seed, np.arange(start, start + count), CROP_PX)
    leaves = list(leaves_of(operations))
    assert [step.kind for step in steps] == [leaf.kind for leaf, _ in leaves]
    for step, (_, share) in zip(steps, leaves, strict=True):
        # Chernoff's bound of the binomial distribution: beyond 25, one draw in 10^10
        assert count * divergence(float(step.is_on.mean()), share) < 25


def divergence(found: float, share: float) -> float:
    """Kullback and Leibler's, of two coins, in nats; no more than a billionth of it is rounding."""
    share = min(share, 1.0)
    terms = ((found, share), (1 - found, 1 - share))
    return sum(p * np.log(p / q) if q else np.inf for p, q in terms if p)


@settings(max_examples=100, deadline=None)
@given(operation=st.one_of(*EXACT, *OTHERS), seed=SEEDS, start=POSITIONS, crop_px=st.integers(16, 256))
def test_values_are_in_the_ranges_asked_for(operation: Any, seed: int, start: int, crop_px: int) -> None:
    (step,) = draw_steps([operation], seed, np.arange(start, start + 200), crop_px)
    checks = RANGES[operation.kind](operation, crop_px) if operation.kind in RANGES else {}
    assert set(checks) == {name for name in step.values if not name.startswith("m")}
    for name, (low, high) in checks.items():
        drawn = step.values[name]
        slack = 1e-9 * max(1.0, abs(low), abs(high))
        assert drawn.min() >= low - slack
        assert drawn.max() <= high + slack
    if operation.kind in ("posterize", "jpeg", "low_resolution", "erase"):
        assert all((drawn == np.rint(drawn)).all() for drawn in step.values.values())
    if operation.kind in ("random_resized_crop", "erase"):
        check_rectangles(operation, step, crop_px)
    if operation.kind == "affine":
        check_matrices(operation, step, crop_px)


def spread(amount: float) -> tuple[float, float]:
    return 1 - amount, 1 + amount


RANGES: dict[str, Any] = {
    "random_resized_crop": lambda of, side: dict.fromkeys(("left", "top", "width", "height"), (0, side)),
    "erase": lambda of, side: {
        **dict.fromkeys(("left", "top", "width", "height"), (0, side)),
        "fill": (of.fill, of.fill),
    },
    "affine": lambda of, side: {},
    "colour_jitter": lambda of, side: {
        name: spread(getattr(of, name)) for name in ("brightness", "contrast", "saturation")
    },
    "hsv": lambda of, side: {
        "hue_degrees": (-of.hue_degrees, of.hue_degrees),
        "saturation": spread(of.saturation),
        "value": spread(of.value),
    },
    "posterize": lambda of, side: {"bits": of.bits},
    "jpeg": lambda of, side: {"quality": of.quality},
    "blur": lambda of, side: {"sigma_px": of.sigma_px},
    "low_resolution": lambda of, side: {
        "side_px": tuple(max(1, round(side * share)) for share in of.side),
    },
}


def check_rectangles(operation: RandomResizedCrop | Erase, step: Step, side: int) -> None:
    """They lie in the photo; where that cuts nothing off, area and shape are as asked for, up to whole pixels."""
    width, height = step.values["width"], step.values["height"]
    assert (step.values["left"] + width).max() <= side + 1e-9
    assert (step.values["top"] + height).max() <= side + 1e-9
    if isinstance(operation, Erase):
        assert min(width.min(), height.min()) >= 1
        return
    whole = (width < side * (1 - 1e-9)) & (height < side * (1 - 1e-9))
    for found, (low, high) in (((width * height / side**2), operation.area), (width / height, operation.aspect)):
        assert (found[whole] >= low * (1 - 1e-9)).all()
        assert (found[whole] <= high * (1 + 1e-9)).all()
    assert (width * height <= operation.area[1] * side**2 * (1 + 1e-9)).all()


def check_matrices(operation: Affine, step: Step, side: int) -> None:
    """Size, angle, lean and shift are read off the matrix from the photo to the result."""
    inverse = np.stack([step.values[f"m{row}{column}"] for row in range(2) for column in range(3)], 1).reshape(-1, 2, 3)
    forth = np.linalg.inv(inverse[:, :, :2])
    scale = np.sqrt(np.abs(np.linalg.det(forth)))
    assert (scale >= operation.scale[0] * (1 - 1e-6)).all()
    assert (scale <= operation.scale[1] * (1 + 1e-6)).all()
    angle = np.degrees(np.arctan2(forth[:, 1, 0], forth[:, 0, 0]))  # of what was horizontal
    assert (np.abs(angle) <= operation.rotate_degrees + 1e-6).all()
    upright = np.degrees(np.arctan2(-forth[:, 0, 1], forth[:, 1, 1]))
    lean = (upright - angle + 180) % 360 - 180
    assert (np.abs(lean) <= operation.shear_degrees + 1e-6).all()
    centre = np.full(2, side / 2)
    shift = np.einsum("bij,bj->bi", forth, centre - inverse[:, :, 2]) - centre
    assert (np.abs(shift) <= side * operation.translate + 1e-6 * side).all()


@settings(max_examples=15, deadline=None)
@given(operations=lists_of(EXACT), seed=SEEDS, start=POSITIONS)
def test_both_decoders_apply_the_same_steps(operations: list[Augmentation], seed: int, start: int) -> None:
    rng = np.random.default_rng(0)
    contents = {slot: bytearray(encode_jpeg(random_image(rng, CROP_PX))) for slot in range(8)}
    steps = draw_steps(operations, seed, np.arange(start, start + 8), CROP_PX)
    cpu = torch.device("cpu")
    images = []
    for decoder in (
        CpuBatchDecoder(CROP_PX, cpu, StageTimes()),
        DaliBatchDecoder(DaliDecoder(), operations, CROP_PX, 8, cpu, 1, StageTimes()),
    ):
        memory = decoder.begin(8)
        assert decoder.prepare(memory, contents, steps) == {}
        made, failures = decoder.assemble(memory, [True] * 8, steps)
        assert failures == {}
        images.append(made.clone())
        decoder.close()
    assert torch.equal(*images)


def test_the_loader_hands_the_same_draws_to_either_decoder_on_any_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = open_dataset(make_dataset(tmp_path, num_samples=40, num_identities=4, crop_px=CROP_PX)).split("train")
    operations = (OneOf(operations=(Blur(), Jpeg(), Flip()), weights=(5, 1, 2)), ColourJitter(probability=0.5))
    handed: list[Sequence[Step]] = []

    def watched(*arguments: Any, **options: Any) -> Decoder:
        decoder = make_decoder(*arguments, **options)
        prepare, assemble = decoder.prepare, decoder.assemble

        def watch(inner: Any) -> Any:
            def call(memory: Any, what: Any, steps: Sequence[Step]) -> Any:
                handed.append(steps)
                return inner(memory, what, steps)

            return call

        decoder.prepare, decoder.assemble = watch(prepare), watch(assemble)  # type: ignore[method-assign]
        return decoder

    monkeypatch.setattr(loader_module, "make_decoder", watched)
    expected = {
        str(plain(draw_steps(operations, 7, np.arange(start, start + 4), CROP_PX), slice(None)))
        for start in range(0, 40, 4)
    }
    for config in (CpuDecoder(), DaliDecoder()):
        for world_size in (1, 2):
            handed.clear()
            for rank in range(world_size):
                options: dict[str, Any] = {"rank": rank, "world_size": world_size, "decoder": config, "seed": 7}
                with make_loader(
                    split, global_batch=8, local_batch=4, stop=40, crop_px=CROP_PX, augment=operations, **options
                ) as loader:
                    list(loader)
            assert {str(plain(steps, slice(None))) for steps in handed} == expected


def test_even_choices_are_those_of_runs_before_there_were_weights() -> None:
    operations: list[Any] = [Blur(), Jpeg(), Flip(probability=1.0)]
    positions: npt.NDArray[np.int64] = np.arange(2000)
    for weights in (None, (1.0, 1.0, 1.0), (0.25, 0.25, 0.25)):
        steps = draw_steps([OneOf(operations=tuple(operations), weights=weights)], 5, positions, CROP_PX)
        chosen = np.stack([step.is_on for step in steps]).argmax(0)
        assert chosen[:20].tolist() == [0, 2, 2, 1, 2, 1, 0, 1, 0, 0, 1, 1, 2, 2, 0, 0, 2, 2, 0, 0]
        assert np.bincount(chosen).min() > 600
