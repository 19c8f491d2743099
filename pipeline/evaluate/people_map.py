"""Maps of embeddings: some people's photos laid out in the plane, so that neighbours stay neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec

import numpy as np
from sklearn.manifold import TSNE, SpectralEmbedding

from pipeline.config.errors import UserError
from pipeline.evaluate.embed import Embeddings
from pipeline.evaluate.pairs import Photo
from pipeline.evaluate.result_sections import Coordinates, PeopleMap
from pipeline.evaluate.verification import Floats

PHOTOS_A_PERSON = 20

_PERPLEXITY = 30.0
_NEIGHBOURS = 15
_SCALE_NEIGHBOUR = 7
_LEAST_SCALE = 0.25
_LEAST_PHOTOS = 6


def map_people(found: Embeddings, num_people: int, where: object, seed: int = 0) -> PeopleMap:
    """Lay out the photos of the people who have most, of equal ones by name, each with at most `PHOTOS_A_PERSON`.

    Args:
        found: embeddings.
        num_people: as many or fewer are there.
        where: what to name in messages.
        seed: of the layouts.

    Raises:
        UserError: fewer than two people with two photos, or fewer than six photos.
    """
    chosen = choose_photos(found.photos, num_people, where)
    people, rows = list(chosen), [row for own in chosen.values() for row in own]
    vectors = found.vectors[rows]
    return PeopleMap(
        protocol=f"the people with most photos, at most {PHOTOS_A_PERSON} of each, the first by number",
        people=people,
        person=[number for number, name in enumerate(people) for _ in chosen[name]],
        photo=[str(found.photos[row]) for row in rows],
        maps=[_tsne(vectors, seed), _umap(vectors, seed) if find_spec("umap") else _spectral(vectors, seed)],
    )


def choose_photos(photos: Sequence[Photo], num_people: int, where: object) -> dict[str, list[int]]:
    """The people of a map, and the places of their photos by number; see `map_people`.

    Raises:
        UserError: see there.
    """
    by_person: dict[str, list[int]] = {}
    for place in sorted(range(len(photos)), key=lambda place: photos[place]):
        by_person.setdefault(photos[place].identity, []).append(place)
    several = [name for name, places in by_person.items() if len(places) > 1]
    people = sorted(several, key=lambda name: (-len(by_person[name]), name))[:num_people]
    chosen = {name: by_person[name][:PHOTOS_A_PERSON] for name in people}
    num_photos = sum(map(len, chosen.values()))
    if len(people) < 2 or num_photos < _LEAST_PHOTOS:
        listed = f"{num_photos} photos of {len(people)} people who have two or more"
        raise UserError(where, f"{listed}: no map", f"two people and {_LEAST_PHOTOS} photos", "leave --map out")
    return chosen


def _tsne(vectors: Floats, seed: int) -> Coordinates:
    """t-SNE (van der Maaten & Hinton 2008)."""
    perplexity = min(_PERPLEXITY, (len(vectors) - 1) / 3)
    # Principal components keep the large-scale layout; embeddings that are all the same have none.
    start = "pca" if np.ptp(vectors, axis=0).any() else "random"
    placed = TSNE(perplexity=perplexity, init=start, learning_rate="auto", random_state=seed).fit_transform(vectors)
    return _coordinates(f"t-SNE (scikit-learn), perplexity {perplexity:g}", placed)


def _umap(vectors: Floats, seed: int) -> Coordinates:
    """UMAP (McInnes, Healy & Melville 2018)."""
    neighbours = min(_NEIGHBOURS, len(vectors) - 1)
    options = {"n_neighbors": neighbours, "metric": "cosine", "random_state": seed, "n_jobs": 1}
    placed = import_module("umap").UMAP(**options).fit_transform(vectors)
    return _coordinates(f"UMAP (umap-learn), {neighbours} neighbours", placed)


def _spectral(vectors: Floats, seed: int) -> Coordinates:
    """Laplacian eigenmaps (Belkin & Niyogi 2003), which UMAP starts from, of affinities that scale themselves.

    exp(-d² / (s s')) with s the distance to the 7th neighbour (Zelnik-Manor & Perona 2004), and no less than a quarter
    of the largest distance: where photos of a person are near duplicates, people would otherwise have no affinity at
    all, and there would be a map of each instead of one of all.
    """
    squared = np.maximum(2.0 - 2.0 * vectors @ vectors.T, 0.0)
    distance = np.sqrt(squared)
    scale = np.sort(distance, axis=1)[:, min(_SCALE_NEIGHBOUR, len(vectors) - 1)]
    scale = np.maximum(scale, _LEAST_SCALE * distance.max())
    affinity = np.exp(-squared / np.maximum(np.outer(scale, scale), 1e-12))
    placed = SpectralEmbedding(2, affinity="precomputed", random_state=seed).fit_transform(affinity)
    return _coordinates("spectral embedding (scikit-learn), in the place of UMAP: umap-learn is not installed", placed)


def _coordinates(method: str, placed: Floats) -> Coordinates:
    return Coordinates(method=method, x=placed[:, 0].astype(float).tolist(), y=placed[:, 1].astype(float).tolist())
