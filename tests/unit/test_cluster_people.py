"""Halves of the people, thresholds chosen on one of them, figures of the other."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.config.errors import UserError
from pipeline.evaluate import clustering
from pipeline.evaluate.cluster_people import THRESHOLDS, deal_halves, measure_clusters
from pipeline.evaluate.embed import Embeddings
from pipeline.evaluate.pairs import Photo


def people(num_people: int, num_photos: int, spread: float) -> Embeddings:
    rng = np.random.default_rng(1)
    photos, vectors = [], []
    for person in range(num_people):
        centre = rng.standard_normal(32)
        for number in range(num_photos):
            photos.append(Photo(f"p{person:02d}", number + 1))
            vectors.append(centre + spread * rng.standard_normal(32))
    order = rng.permutation(len(photos))
    unit = np.array(vectors) / np.linalg.norm(vectors, axis=1, keepdims=True)
    return Embeddings([photos[row] for row in order], unit[order], {})


def test_people_far_apart_are_found_by_all_methods() -> None:
    found = measure_clusters(people(9, 6, 0.15), "x")
    assert (found.num_people_to_choose, found.num_photos_to_choose) == (5, 30)
    assert (found.num_people, found.num_photos, found.num_left_out) == (4, 24, 0)
    assert [one.method for one in found.methods] == [
        "k-means",
        "average linkage",
        "DBSCAN",
        "HDBSCAN",
        "Chinese whispers",
    ]
    for one in found.methods:
        if one.method == "HDBSCAN":  # which may split a person into densities
            assert 0.8 < one.bcubed.f <= 1.0
            assert one.bcubed.precision == 1.0
        else:
            assert (one.num_clusters, one.pairwise.f, one.bcubed.f, one.nmi) == (4, 1.0, 1.0, pytest.approx(1.0))
        assert (one.threshold is None) == (one.method in ("k-means", "HDBSCAN"))


def test_thresholds_come_from_the_first_half_and_figures_from_the_second() -> None:
    embeddings = people(12, 5, 0.9)
    found = measure_clusters(embeddings, "x", seed=4)
    names = sorted({photo.identity for photo in embeddings.photos})
    lot = [names[place] for place in np.random.RandomState(4).permutation(12)]

    def half(people: list[str]) -> tuple[np.ndarray, np.ndarray]:
        rows = [row for row, photo in enumerate(embeddings.photos) if photo.identity in people]
        rows.sort(key=lambda row: embeddings.photos[row])
        truth = [names.index(embeddings.photos[row].identity) for row in rows]
        return embeddings.vectors[rows], np.array(truth)

    (vectors, own), (measured, truth) = half(lot[:6]), half(lot[6:])
    scores = {
        float(cosine): clustering.bcubed(clustering.agglomerative(vectors, cosine), own).f for cosine in THRESHOLDS
    }
    equal = [cosine for cosine, score in scores.items() if score == max(scores.values())]
    best = equal[len(equal) // 2]
    linkage = found.methods[1]
    assert linkage.threshold == best
    labels = clustering.agglomerative(measured, best)
    assert linkage.bcubed.f == clustering.bcubed(labels, truth).f
    assert linkage.pairwise.recall == clustering.pairwise(labels, truth).recall
    assert linkage.nmi == clustering.mutual_information(labels, truth)
    # Not so easy that any threshold would do.
    assert 0.2 < linkage.bcubed.f < 1.0
    assert measure_clusters(embeddings, "x", seed=4) == found
    assert measure_clusters(embeddings, "x", seed=5) != found


def test_photos_that_are_put_with_nobody_count_as_clusters() -> None:
    found = measure_clusters(people(8, 3, 3.0), "x")
    density = found.methods[2]
    assert density.method == "DBSCAN"
    assert 1 <= density.num_clusters <= 12
    for one in found.methods:
        assert 0.0 <= one.nmi <= 1.0


def test_people_are_left_out_where_a_half_would_be_too_large() -> None:
    found = measure_clusters(people(10, 4, 0.3), "x", most_photos=9)
    assert (found.num_photos_to_choose, found.num_photos, found.num_left_out) == (8, 8, 24)


def test_people_whose_photos_do_not_fit_are_passed_over() -> None:
    counts = {"a": 50, "b": 3, "c": 3, "d": 3, "e": 50, "f": 3, "g": 3, "h": 3}
    photos = [Photo(name, number) for name, count in counts.items() for number in range(count)]
    names = sorted(counts)
    for seed in range(20):
        # Wherever the lot puts the two with most: they never fill a half, nor end it.
        person, halves = deal_halves(photos, "x", seed, most_photos=10)
        lot = np.random.RandomState(seed).permutation(8)
        for people_of_half, rows in zip((lot[:4], lot[4:]), halves, strict=True):
            expected = [number for number in people_of_half if counts[names[number]] == 3][:3]
            assert sorted(np.unique(person[rows])) == sorted(expected)


def test_a_half_of_one_person_is_refused() -> None:
    # Of one person, any clustering that puts all photos together is perfect.
    photos = [Photo(name, number) for name in "abcd" for number in range(6)]
    with pytest.raises(UserError, match="x: 1 person with at most 10 photos in a half"):
        deal_halves(photos, "x", most_photos=10)
    with pytest.raises(UserError, match="x: 0 people with at most 5 photos in a half"):
        deal_halves(photos, "x", most_photos=5)


@pytest.mark.parametrize(
    ("num_people", "num_photos", "message"), [(3, 5, "3 people to cluster"), (8, 1, "a half of the people")]
)
def test_too_little_is_refused(num_people: int, num_photos: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        measure_clusters(people(num_people, num_photos, 0.2), "x")


def test_no_photos_are_refused() -> None:
    with pytest.raises(UserError, match="0 people to cluster"):
        measure_clusters(Embeddings([], np.empty((0, 0)), {}), "x")
