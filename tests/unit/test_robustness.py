"""Degraded photos by hand, and that the curves are verification of first photos with degraded second ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.evaluate import verification
from pipeline.evaluate.degradation import STRENGTHS, Degradation, DegradedPhotos, degradations, degrade
from pipeline.evaluate.embed import Embedder, extract_embeddings
from pipeline.evaluate.pairs import Pair, PairList, Photo
from pipeline.evaluate.photos import Crop, Rejected
from pipeline.evaluate.result_sections import DegradationKind
from pipeline.evaluate.robustness import count_photos, degraded_distances, measure_robustness
from pipeline.evaluate.run import ScoredPairs, score_embeddings

SIDE = 16
ANN = Photo("Ann", 1)


class Memory:
    """Crops by photo: a person's colour, and noise that each photo has of its own."""

    def __init__(self) -> None:
        self.loaded: list[Photo] = []

    def load(self, photo: Photo) -> Crop | Rejected:
        self.loaded.append(photo)
        if photo.identity == "gone":
            return Rejected("no file")
        base = np.random.default_rng(sum(map(ord, photo.identity))).integers(0, 256, (SIDE, SIDE, 3))
        noise = np.random.default_rng(photo.number).integers(-90, 90, (SIDE, SIDE, 3))
        return (base + noise).clip(0, 255).astype(np.uint8)


def embedder(crop_px: int = SIDE) -> Embedder:
    weights = torch.from_numpy(np.random.default_rng(0).normal(size=(3 * crop_px * crop_px, 12))).float()
    return Embedder(
        lambda images: (images.float() / 127.5 - 1).flatten(1) @ weights, crop_px, torch.device("cpu"), "tiny"
    )


def pair_list() -> PairList:
    """Twelve pairs in two folds; photos stand on either side, and one person's has no crop."""
    names = ("a", "b", "c", "d", "e", "f")
    pairs = [Pair(Photo(name, 1), Photo(name, 2), number % 2) for number, name in enumerate(names)]
    pairs += [Pair(Photo(names[n], 2), Photo(names[(n + 1) % 6], 1), n % 2) for n in range(6)]
    return PairList([*pairs, Pair(Photo("gone", 1), Photo("a", 1), 0)], 2)


def flat(value: int, side: int = SIDE) -> Crop:
    return np.full((side, side, 3), value, np.uint8)


@pytest.mark.parametrize(("gain", "expected"), [(0.25, 25), (1.0, 100), (1.5, 150), (3.0, 255)])
def test_brightness_is_a_factor(gain: float, expected: int) -> None:
    made = degrade(flat(100), Degradation("brightness", gain), ANN)
    assert made.dtype == np.uint8
    assert set(np.unique(made)) == {expected}


@pytest.mark.parametrize("share", [0.0, 0.05, 0.25, 1.0])
def test_an_occlusion_is_one_square_with_its_share_of_the_crop(share: float) -> None:
    side = 20
    places = []
    for number in range(200):
        made = degrade(flat(7, side), Degradation("occlusion", share), Photo("Ann", number))
        rows, columns = (np.flatnonzero((made[..., 0] == 128).any(axis=axis)) for axis in (1, 0))
        length = round(side * share**0.5)
        assert (len(rows), len(columns)) == (length, length)
        assert np.count_nonzero(made[..., 0] == 128) == length * length
        assert set(np.unique(made)) <= {7, 128}
        places.append((int(rows[0]), int(columns[0])) if length else (0, 0))
    # Each photo has its own place, and they reach both ends.
    if share == 0.05:
        assert {top for top, _ in places} == {left for _, left in places} == set(range(17))


def test_an_occlusion_depends_on_photo_and_seed_alone() -> None:
    def made(photo: Photo, seed: int = 0) -> bytes:
        return degrade(flat(7), Degradation("occlusion", 0.1), photo, seed).tobytes()

    assert made(ANN) == made(Photo("Ann", 1))
    assert made(ANN) != made(Photo("Ann", 2))
    assert made(ANN) != made(Photo("Bo", 1))
    assert made(ANN) != made(ANN, seed=1)


def test_blur_scales_with_the_crop() -> None:
    def spread(side: int, sigma: float) -> float:
        """Standard deviation, px, of what a bright column becomes."""
        crop = flat(0, side)
        crop[:, side // 2] = 255
        row = degrade(crop, Degradation("blur", sigma), ANN)[side // 2, :, 0].astype(float)
        return float(np.sqrt(np.average((np.arange(side) - side // 2) ** 2, weights=row)))

    assert spread(112, 4) == pytest.approx(4, rel=0.1)
    assert spread(224, 4) == pytest.approx(8, rel=0.1)
    assert np.array_equal(degrade(flat(90), Degradation("blur", 3), ANN), flat(90))


def test_low_resolution_leaves_as_many_pixels() -> None:
    crop = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    one = degrade(crop, Degradation("low_resolution", 1), ANN)
    assert len(np.unique(one.reshape(-1, 3), axis=0)) == 1
    assert one[0, 0] == pytest.approx(crop.reshape(-1, 3).mean(axis=0), abs=15)
    spread = [float(degrade(crop, Degradation("low_resolution", n), ANN).std()) for n in (2, 8, 24)]
    assert spread == sorted(spread)


def test_jpeg_gets_worse_with_lower_quality() -> None:
    crop = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    away = [
        float(np.abs(degrade(crop, Degradation("jpeg", quality), ANN).astype(int) - crop).mean())
        for quality in (100, 50, 5)
    ]
    assert 0 < away[0] < away[1] < away[2]


@pytest.mark.parametrize("kind", list(STRENGTHS))
def test_the_photo_itself_stays_as_it_is(kind: DegradationKind) -> None:
    crop = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    before = crop.copy()
    made = degrade(crop, Degradation(kind, STRENGTHS[kind][-1]), ANN)
    assert made.shape == crop.shape
    assert np.array_equal(crop, before)
    assert not np.array_equal(made, before)


def test_resolutions_that_the_crop_has_not_are_left_out() -> None:
    assert [one.strength for one in degradations(28) if one.kind == "low_resolution"] == [20, 14, 7]
    assert [one.strength for one in degradations(112) if one.kind == "low_resolution"] == [56, 28, 20, 14, 7]


def test_a_degraded_source_still_says_why_a_photo_is_missing() -> None:
    source = DegradedPhotos(Memory(), Degradation("brightness", 2))
    assert source.load(Photo("gone", 1)) == Rejected("no file")
    assert isinstance(source.load(ANN), np.ndarray)


@pytest.mark.parametrize("batch", [1, 5, 64])
def test_distances_are_those_of_clean_first_and_degraded_second_photos(batch: int) -> None:
    model, source, kind = embedder(), Memory(), Degradation("occlusion", 0.3)
    found = extract_embeddings(model, source, pair_list().photos(), batch=3, flip=True)
    pairs = score_embeddings(found, pair_list(), 0).pairs
    source.loaded.clear()
    done: list[int] = []
    distances = degraded_distances(
        model, source, found, pairs, [kind, Degradation("blur", 1)], batch=batch, flip=True, advance=done.append
    )
    assert len(source.loaded) == len(set(source.loaded)) == sum(done) / 2
    every = extract_embeddings(model, DegradedPhotos(Memory(), kind), found.photos, batch=64, flip=True)
    clean, degraded = (dict(zip(one.photos, one.vectors, strict=True)) for one in (found, every))
    expected = [float(np.sum((clean[pair.left] - degraded[pair.right]) ** 2)) for pair in pairs]
    assert distances[0] == pytest.approx(expected, abs=1e-5)
    assert distances[1] != pytest.approx(expected, abs=1e-2)


def test_the_section_by_its_parts() -> None:
    model, source = embedder(), Memory()
    found = extract_embeddings(model, source, pair_list().photos(), batch=8, flip=False)
    scored = score_embeddings(found, pair_list(), 0)
    section = measure_robustness(model, source, found, scored, batch=8, flip=False)
    assert section.num_probes == 12
    assert count_photos(scored.pairs, SIDE) == 12 * sum(len(curve.points) for curve in section.curves)
    assert [curve.kind for curve in section.curves] == list(STRENGTHS)
    assert [curve.neutral for curve in section.curves] == [0.0, 16.0, None, 0.0, 1.0]
    assert section.clean.accuracy == verification.fold_accuracy(scored.distances, scored.same, scored.fold).mean
    threshold, best = verification.best_threshold(scored.distances, scored.same)
    assert (section.clean_threshold, section.clean.accuracy_at_clean_threshold) == (threshold, best)
    # Twelve pairs do not carry a FAR of 1e-3.
    assert all(point.tar_at_far_1e_3 is None for curve in section.curves for point in curve.points)
    last = section.curves[2].points[-1]
    (row,) = degraded_distances(model, source, found, scored.pairs, [Degradation("jpeg", 5)], batch=8, flip=False)
    assert last.strength == 5
    assert last.accuracy_at_clean_threshold == np.mean((row < threshold) == scored.same)
    assert last.tar_at_clean_threshold == np.mean(row[scored.same] < threshold)
    assert last.far_at_clean_threshold == np.mean(row[~scored.same] < threshold)


def test_a_photo_that_says_nothing_is_judged_by_guessing() -> None:
    """A model that sees brightness only: at a factor of 3 all is white, and every pair equally far."""
    values = {"a": 20, "b": 60}

    class Grey(Memory):
        def load(self, photo: Photo) -> Crop:
            return flat(values[photo.identity])

    def embed(images: torch.Tensor) -> torch.Tensor:
        level = images.float().mean(dim=(1, 2, 3)) / 255
        return torch.stack((level.cos(), level.sin()), dim=1)

    model = Embedder(embed, SIDE, torch.device("cpu"), "grey")
    pairs = PairList(
        [
            Pair(Photo(left, 1), Photo(right, 2), fold)
            for fold in (0, 1)
            for left, right in (("a", "a"), ("b", "b"), ("a", "b"), ("b", "a"))
        ],
        2,
    )
    found = extract_embeddings(model, Grey(), pairs.photos(), batch=8, flip=False)
    scored: ScoredPairs = score_embeddings(found, pairs, 4)
    assert scored.distances.max() == pytest.approx((2 * np.sin(40 / 255 / 2)) ** 2)
    section = measure_robustness(model, Grey(), found, scored, batch=8, flip=False)
    brightness = {point.strength: point for point in section.curves[-1].points}
    # 20 and 60 become 60 and 180 at a factor of 3: the clean "a" then lies as far from either.
    assert section.clean.accuracy == 1.0
    assert brightness[3].tar_at_clean_threshold == 0.0
    assert brightness[3].accuracy_at_clean_threshold < 1.0
