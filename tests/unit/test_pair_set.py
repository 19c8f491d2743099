"""A verification set as photos and pairs: the right images in the right pairs, in ten consecutive folds."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.data.pair_bin import PairBin
from pipeline.evaluate.pair_set import PairSetPhotos, list_pairs
from pipeline.evaluate.pairs import Photo
from pipeline.evaluate.photos import Crop, Rejected


def set_of(num_pairs: int) -> PairBin:
    """Each image is its number."""
    images = [b"%d" % number for number in range(2 * num_pairs)]
    return PairBin(images, [number % 3 == 0 for number in range(num_pairs)])


def crop(image: bytes) -> Crop | Rejected:
    return Rejected("broken") if image == b"4" else np.full((2, 2, 3), int(image), np.uint8)


@pytest.mark.parametrize(
    ("num_pairs", "sizes"),
    [(20, [2] * 10), (23, [3, 3, 3, 2, 2, 2, 2, 2, 2, 2]), (4, [1, 1, 1, 1])],
)
def test_pairs_keep_their_order_and_folds_are_consecutive(num_pairs: int, sizes: list[int]) -> None:
    pairs = set_of(num_pairs)
    photos, listed = PairSetPhotos(pairs, crop), list_pairs(pairs)
    assert [pair.same for pair in listed.pairs] == pairs.is_same
    folds = [pair.fold for pair in listed.pairs]
    assert folds == sorted(folds)
    assert np.bincount(folds).tolist() == sizes
    assert len(listed.photos()) == 2 * num_pairs, "no two pairs share a photo"
    for number, pair in enumerate(listed.pairs):
        for image, photo in enumerate((pair.left, pair.right), start=2 * number):
            found = photos.load(photo)
            assert (
                found == Rejected("broken")
                if image == 4
                else not isinstance(found, Rejected) and found[0, 0, 0] == image
            )
    assert sum(len(numbers) for numbers in photos.numbers().values()) == 2 * num_pairs


def test_other_photos_are_not_in_the_set() -> None:
    assert PairSetPhotos(set_of(3), crop).load(Photo("pair_00009", 1)) == Rejected("not in the verification set")
