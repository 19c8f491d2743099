"""Augmentation parameters follow from what they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

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
from pipeline.config.decoder import DaliDecoder
from pipeline.data.augment import Step, draw_steps
from pipeline.data.counter import derive_keys, uniform
from pipeline.data.decode_cpu import CpuBatchDecoder
from pipeline.data.decode_dali import DaliBatchDecoder
from pipeline.data.photo_steps import apply_step
from pipeline.data.stage_times import StageTimes
from tests.datasets import encode_jpeg, random_image

CROP_PX = 48
EVERY: list[Augmentation] = [
    RandomResizedCrop(area=(0.3, 1.0)),
    Affine(rotate_degrees=40, translate=0.2, scale=(0.6, 1.5), shear_degrees=15),
    ColourJitter(brightness=0.5, contrast=0.5, saturation=0.5),
    Hsv(hue_degrees=60, saturation=0.5, value=0.4),
    Grey(),
    Posterize(bits=(1, 8)),
    Equalize(),
    Blur(sigma_px=(0.2, 3.0)),
    LowResolution(side=(0.05, 1.0)),
    Jpeg(quality=(1, 100)),
    Erase(area=(0.0, 1.0)),
    Flip(),
]
NESTED: list[Augmentation] = [
    Flip(),
    AllOf(
        probability=0.8,
        operations=(
            OneOf(
                operations=(
                    Blur(),
                    LowResolution(probability=0.5),
                    AllOf(operations=(Jpeg(), Posterize(probability=0.7))),
                )
            ),
            ColourJitter(probability=0.9),
        ),
    ),
    OneOf(probability=0.5, operations=(Erase(), Grey(), Hsv())),
    Flip(),
]


def draw(operations: Sequence[Augmentation], seed: int, positions: npt.NDArray[np.int64]) -> tuple[Step, ...]:
    return draw_steps(operations, seed, positions, CROP_PX)


def take(steps: Sequence[Step], slots: npt.NDArray[np.int64]) -> list[tuple[Any, ...]]:
    return [
        (step.kind, step.is_on[slots].tolist(), {name: drawn[slots].tolist() for name, drawn in step.values.items()})
        for step in steps
    ]


@pytest.mark.parametrize("operations", [[Flip()], EVERY, NESTED], ids=["flip", "every", "nested"])
def test_parameters_depend_on_position_not_on_the_batch_they_are_asked_in(operations: list[Augmentation]) -> None:
    positions = np.arange(1000, 1400)
    whole = draw(operations, 0, positions)
    shuffled = np.random.default_rng(0).permutation(400)
    assert take(draw(operations, 0, positions[shuffled]), np.arange(400)) == take(whole, shuffled)
    assert take(draw(operations, 0, positions[17:18]), np.arange(1)) == take(whole, np.array([17]))


def test_coins_have_the_asked_probability_and_differ_by_seed_and_place() -> None:
    positions = np.arange(10_000) + 2**40
    for probability in (0.0, 0.2, 0.5, 1.0):
        for step in draw([Flip(probability=probability), Grey(probability=probability)], 0, positions):
            error = 4 * np.sqrt(probability * (1 - probability) / 10_000) + 1e-12
            assert abs(step.is_on.mean() - probability) < error
    (one, again), (other, _) = (draw([Flip(), Flip()], seed, positions) for seed in (0, 1))
    for first, second in ((one, other), (one, again)):
        assert abs((first.is_on == second.is_on).mean() - 0.5) < 0.02
    assert abs((one.is_on[1:] == one.is_on[:-1]).mean() - 0.5) < 0.02, "neighbouring positions are independent"


def test_a_flip_alone_is_that_of_older_runs() -> None:
    assert np.array_equal(
        draw([Flip()], 3, np.arange(500))[0].is_on, uniform("horizontal flip", 3, np.arange(500)) < 0.5
    )


def test_trees_choose_one_or_all() -> None:
    positions = np.arange(6000)
    steps = draw(NESTED, 0, positions)
    assert [step.kind for step in steps] == [
        "flip", "blur", "low_resolution", "jpeg", "posterize", "colour_jitter", "erase", "grey", "hsv", "flip"
    ]  # fmt: skip
    _, blur, low, jpeg, posterize, jitter, erase, grey, hsv, _ = (step.is_on for step in steps)
    assert not (blur & low).any()
    assert not (blur & jpeg).any()
    assert not (posterize & ~jpeg).any()
    assert not (erase & grey | grey & hsv | hsv & erase).any()
    third = 0.8 / 3
    for is_on, share in (
        (blur, third),
        (low, third / 2),
        (jpeg, third),
        (posterize, third * 0.7),
        (jitter, 0.8 * 0.9),
        (erase, 0.5 / 3),
        (grey, 0.05 / 3),
        (hsv, 0.5 / 3),
    ):
        assert abs(is_on.mean() - share) < 4 * np.sqrt(share * (1 - share) / 6000)


def test_values_stay_in_their_ranges() -> None:
    positions = np.arange(5000)
    by_kind = {step.kind: step.values for step in draw(EVERY, 0, positions)}
    for kind in ("random_resized_crop", "erase"):
        found = by_kind[kind]
        for begin, length in (("left", "width"), ("top", "height")):
            assert found[begin].min() >= 0
            assert found[length].min() > 0
            assert (found[begin] + found[length]).max() <= CROP_PX + 1e-9
    area = by_kind["random_resized_crop"]["width"] * by_kind["random_resized_crop"]["height"] / CROP_PX**2
    assert 0.25 < area.min() < 0.35
    assert area.max() <= 1
    assert set(by_kind["posterize"]["bits"]) == set(range(1, 9))
    assert by_kind["jpeg"]["quality"].min() == 1
    assert by_kind["jpeg"]["quality"].max() == 100
    assert by_kind["blur"]["sigma_px"].min() >= 0.2
    assert by_kind["blur"]["sigma_px"].max() <= 3.0
    assert by_kind["low_resolution"]["side_px"].min() == 2
    assert by_kind["low_resolution"]["side_px"].max() == CROP_PX
    matrices = np.stack([by_kind["affine"][f"m{row}{column}"] for row in range(2) for column in range(3)], axis=1)
    shrink = np.sqrt(np.abs(np.linalg.det(matrices.reshape(-1, 2, 3)[:, :, :2])))
    assert 1 / 1.5 - 1e-9 <= shrink.min() < 0.7
    assert 1.6 < shrink.max() <= 1 / 0.6 + 1e-9


def render(decoder: Any, contents: list[bytearray], steps: Sequence[Step]) -> tuple[torch.Tensor, list[int]]:
    memory = decoder.begin(len(contents))
    failed = decoder.prepare(memory, dict(enumerate(contents)), steps)
    images, failures = decoder.assemble(memory, [slot not in failed for slot in range(len(contents))], steps)
    return images, sorted([*failed, *failures])


def both(
    operations: Sequence[Augmentation], contents: list[bytearray], steps: Sequence[Step]
) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    cpu = torch.device("cpu")
    ours, failed = render(CpuBatchDecoder(CROP_PX, cpu, StageTimes()), contents, steps)
    dali = DaliBatchDecoder(DaliDecoder(), operations, CROP_PX, len(contents), cpu, 1, StageTimes())
    theirs, failed_too = render(dali, contents, steps)
    dali.close()
    assert failed == failed_too
    return ours, theirs, failed


@pytest.fixture(scope="module")
def contents() -> list[bytearray]:
    rng = np.random.default_rng(0)
    return [bytearray(encode_jpeg(random_image(rng, CROP_PX))) for _ in range(40)]


# greatest mean and greatest single difference, in grey levels, over 40 photos; docs/augmentation.md has them too
TOLERANCE = {
    "random_resized_crop": (0.05, 1),
    "affine": (0.05, 1),
    "colour_jitter": (0.2, 1),
    "hsv": (0.2, 1),
    "grey": (0.1, 1),
    "blur": (0.1, 1),
    "low_resolution": (0.6, 16),
}


@pytest.mark.parametrize("operation", EVERY, ids=lambda operation: operation.kind)
def test_both_decoders_make_the_same_pixels(contents: list[bytearray], operation: Augmentation) -> None:
    operation = operation.model_copy(update={"probability": 0.8})
    steps = draw([operation], 0, np.arange(40))
    ours, theirs, failed = both([operation], contents, steps)
    assert failed == []
    difference = (ours.int() - theirs.int()).abs()
    mean, greatest = TOLERANCE.get(operation.kind, (0.0, 0))
    assert difference.float().mean() <= mean
    assert difference.max() <= greatest
    plain, _ = render(CpuBatchDecoder(CROP_PX, torch.device("cpu"), StageTimes()), contents, ())
    is_on = torch.from_numpy(steps[0].is_on)
    assert torch.equal(ours[~is_on], plain[~is_on])
    assert torch.equal(theirs[~is_on], plain[~is_on])
    changed = (ours[is_on] != plain[is_on]).flatten(1).any(1)
    assert changed.float().mean() > 0.8, "it does something"


def test_nested_operations_and_broken_samples(contents: list[bytearray]) -> None:
    contents = [bytearray(content) for content in contents]
    contents[3][contents[3].index(b"\xff\xdb") + 4] = 9  # a quantisation table that does not exist
    contents[30] = contents[30][:40]
    ours, theirs, failed = both(NESTED, contents, draw(NESTED, 0, np.arange(40)))
    assert failed == [3, 30]
    assert not ours[[3, 30]].any()
    assert not theirs[[3, 30]].any()
    difference = (ours.int() - theirs.int()).abs().float()
    # what a later step sees of a rounding difference may be a step of the quantiser
    assert difference.mean() < 0.5
    assert difference.flatten(1).mean(1).max() < 4


def test_geometry_is_what_it_says() -> None:
    """A photo of two halves: a quarter turn, a shift, a crop of one half."""
    photo = np.zeros((CROP_PX, CROP_PX, 3), np.uint8)
    photo[:, : CROP_PX // 2] = 200
    turn = {"m00": 0.0, "m01": 1.0, "m02": 0.0, "m10": -1.0, "m11": 0.0, "m12": float(CROP_PX)}
    assert np.array_equal(apply_step("affine", photo, turn), np.rot90(photo, -1))
    shift = {"m00": 1.0, "m01": 0.0, "m02": 5.0, "m10": 0.0, "m11": 1.0, "m12": 0.0}
    moved = apply_step("affine", photo, shift)
    assert np.array_equal(moved[:, : CROP_PX - 5], photo[:, 5:])
    left = {"left": 0.0, "top": 3.0, "width": CROP_PX / 2, "height": 20.0}
    assert (apply_step("random_resized_crop", photo, left)[:, : CROP_PX - 2] == 200).all()
    assert np.array_equal(apply_step("flip", photo, {}), photo[:, ::-1])
    covered = apply_step("erase", photo.copy(), {"left": 3.0, "top": 4.0, "width": 5.0, "height": 6.0, "fill": 9.0})
    assert (covered[4:10, 3:8] == 9).all()
    assert (covered != photo).any(2).sum() == 30


def test_wrong_ranges_are_refused() -> None:
    with pytest.raises(ValueError, match=r"bits: 6 to 3 is no range"):
        Posterize(bits=(6, 3))
    with pytest.raises(ValueError, match="less than or equal to 1"):
        RandomResizedCrop(area=(0.5, 1.5))
    with pytest.raises(ValueError, match="at least 1 item"):
        OneOf(operations=())


def test_operations_on_one_sample_are_independent() -> None:
    positions = np.arange(10_000)
    first, second = uniform("one", 0, positions), uniform("other", 0, positions)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.04
    for draws in (first, second):
        assert draws.min() >= 0
        assert draws.max() < 1
        histogram = np.histogram(draws, 20, (0, 1))[0]
        assert ((histogram - 500) ** 2 / 500).sum() < 43.8  # 19 degrees of freedom, p = 0.001


def test_keys_tell_parts_apart() -> None:
    keys = {
        int(derive_keys(1, *parts)[0]) for parts in (["ab", "c"], ["a", "bc"], ["abc"], ["a", 1], ["a", "1"], ["a", 2])
    }
    assert len(keys) == 6
