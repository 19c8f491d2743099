"""Who is on a map, that people who are far apart stay apart on it, and that it is the same each time."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.config.errors import UserError
from pipeline.evaluate.embed import Embeddings
from pipeline.evaluate.pairs import Photo
from pipeline.evaluate.people_map import PHOTOS_A_PERSON, choose_photos, map_people


def people(counts: dict[str, int], spread: float = 0.2) -> Embeddings:
    """Each person's photos lie round a direction of their own; rows in an order that is not that of the names."""
    rng = np.random.default_rng(0)
    photos, vectors = [], []
    for name, count in counts.items():
        centre = rng.standard_normal(16)
        for number in range(count, 0, -1):
            photos.append(Photo(name, number))
            vectors.append(centre + spread * rng.standard_normal(16))
    return Embeddings(photos, np.array([vector / np.linalg.norm(vector) for vector in vectors]), {})


def test_the_people_with_most_photos_are_drawn() -> None:
    found = map_people(people({"Dee": 3, "Ann": 3, "Bo": 4, "Cy": 1, "Eve": 2, "Zoe": PHOTOS_A_PERSON + 5}), 3, "x")
    assert found.people == ["Zoe", "Bo", "Ann"]
    assert found.person == [0] * PHOTOS_A_PERSON + [1] * 4 + [2] * 3
    # The first photos by number.
    first = [f"Zoe_{number:04d}" for number in range(1, PHOTOS_A_PERSON + 1)]
    assert found.photo == [*first, *(f"Bo_000{n}" for n in range(1, 5)), *(f"Ann_000{n}" for n in range(1, 4))]
    assert [len(one.x) for one in found.maps] == [len(one.y) for one in found.maps] == [len(found.person)] * 2
    # More people than there are: all who have two photos.
    assert len(map_people(people({"Ann": 3, "Bo": 4, "Cy": 1}), 50, "x").people) == 2


def test_all_photos_of_a_person_count_not_only_those_that_are_drawn() -> None:
    counts = {"Ann": PHOTOS_A_PERSON, "Bo": PHOTOS_A_PERSON + 1, "Cy": PHOTOS_A_PERSON + 10}
    photos = [Photo(name, number) for name, count in counts.items() for number in range(count)]
    chosen = choose_photos(photos, 2, "x")
    assert {name: len(places) for name, places in chosen.items()} == {"Cy": PHOTOS_A_PERSON, "Bo": PHOTOS_A_PERSON}


def test_photos_that_go_by_path_keep_it() -> None:
    found = people({"a": 3, "b": 3})
    by_path = [Photo(photo.identity, 0, f"{photo.identity}/{photo.number}.jpg") for photo in found.photos]
    drawn = map_people(Embeddings(by_path, found.vectors, {}), 2, "x")
    assert drawn.photo == ["a/1.jpg", "a/2.jpg", "a/3.jpg", "b/1.jpg", "b/2.jpg", "b/3.jpg"]


def test_people_stay_together() -> None:
    found = map_people(people(dict.fromkeys("abcd", 12)), 4, "x")
    person = np.array(found.person)
    tsne = found.maps[0]
    assert tsne.method.startswith("t-SNE")
    place = np.stack((tsne.x, tsne.y), axis=1)
    away = np.linalg.norm(place[:, None] - place[None], axis=2)
    np.fill_diagonal(away, np.inf)
    assert (person[away.argmin(axis=1)] == person).all()


def test_without_umap_the_map_says_what_stands_in_its_place() -> None:
    found = map_people(people({"a": 10, "b": 10}), 2, "x")
    spectral = found.maps[1]
    assert "spectral embedding" in spectral.method
    assert "umap-learn is not installed" in spectral.method
    # Two people are the two ends of the first eigenvector.
    first = np.array(spectral.x)
    assert (first[:10] > 0).all() != (first[10:] > 0).all()


def test_the_same_map_each_time() -> None:
    embeddings = people({"a": 5, "b": 5})
    assert map_people(embeddings, 2, "x") == map_people(embeddings, 2, "x")


def test_equal_embeddings_do_not_break_it() -> None:
    vectors = np.tile([[1.0, 0.0]], (8, 1))
    found = map_people(Embeddings([Photo(name, n) for name in "ab" for n in range(4)], vectors, {}), 2, "x")
    assert all(np.isfinite([*one.x, *one.y]).all() for one in found.maps)


def test_people_whose_photos_are_near_duplicates_stay_on_one_map() -> None:
    found = map_people(people({"a": 10, "b": 10, "c": 10}, spread=1e-4), 3, "x")
    first = np.array([found.maps[1].x, found.maps[1].y]).T.reshape(3, 10, 2)
    # Three people, three places: photos of one person lie together and people apart.
    within = np.ptp(first, axis=1).max()
    apart = min(np.linalg.norm(first[i, 0] - first[j, 0]) for i in range(3) for j in range(i))
    assert apart > 10 * within


@pytest.mark.parametrize("counts", [{}, {"a": 9}, {"a": 1, "b": 1}, {"a": 2, "b": 2}, {"a": 9, "b": 1}])
def test_too_few_photos_are_refused(counts: dict[str, int]) -> None:
    with pytest.raises(UserError, match=r"data: \d photos of \d people who have two or more: no map"):
        map_people(people(counts), 5, "data")
