"""Augmentation parameters follow from what they belong to."""

from __future__ import annotations

import numpy as np

from pipeline.data.augment import flip_flags
from pipeline.data.counter import derive_keys, uniform


def test_flags_depend_on_position_not_on_the_batch_they_are_asked_in() -> None:
    positions = np.arange(1000, 2000)
    flags = flip_flags(0, positions, 0.5)
    shuffled = np.random.default_rng(0).permutation(1000)
    assert np.array_equal(flip_flags(0, positions[shuffled], 0.5), flags[shuffled])
    assert np.array_equal(flip_flags(0, positions[17:18], 0.5), flags[17:18])


def test_flags_have_the_asked_probability_and_differ_by_seed() -> None:
    positions = np.arange(10_000) + 2**40
    for probability in (0.0, 0.2, 0.5, 1.0):
        share = flip_flags(0, positions, probability).mean()
        assert abs(share - probability) < 4 * np.sqrt(probability * (1 - probability) / 10_000) + 1e-12
    agreement = (flip_flags(0, positions, 0.5) == flip_flags(1, positions, 0.5)).mean()
    assert abs(agreement - 0.5) < 0.02
    flags = flip_flags(0, positions, 0.5)
    assert abs((flags[1:] == flags[:-1]).mean() - 0.5) < 0.02, "neighbouring positions are independent"


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
