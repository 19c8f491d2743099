"""What embeddings say of labels: photos far from their person's centre, and two people who look like one.

There is no absolute threshold: it would depend on the model. A photo is doubtful when it is less like its own person
than photos commonly are like strangers; two people are, when each would pass as a photo of the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]

_WEISZFELD_STEPS = 10
_SMALLEST_DISTANCE = 1e-3
_BLOCK = 4096
_TILE = 2048
MIN_PHOTOS = 4
"""Of a person, for a centre that one wrong photo does not decide."""


@dataclass(frozen=True)
class Centres:
    """Where people's photos lie."""

    centres: Vectors
    """[C, D], the geometric median of each person's photos, brought to length 1."""
    own_cosine: Vectors
    """[N] cosine of each photo to its person's centre without that photo."""
    num_photos: npt.NDArray[np.int64]
    """[C]."""


def robust_centres(vectors: Vectors, labels: npt.NDArray[np.int64]) -> Centres:
    """Find each person's geometric median by Weiszfeld's iteration; wrong photos hardly move it.

    Args:
        vectors: [N, D], L2-normalised.
        labels: [N], contiguous from 0, each with a photo.
    """
    num_people = int(labels.max(initial=-1)) + 1
    counts = np.bincount(labels, minlength=num_people)
    order = np.argsort(labels, kind="stable")
    starts = np.cumsum(counts) - counts
    ordered, own = vectors[order], labels[order]
    weights = np.ones(len(ordered), np.float32)
    for _ in range(_WEISZFELD_STEPS):
        sums = np.add.reduceat(ordered * weights[:, None], starts)
        centres = sums / np.add.reduceat(weights, starts)[:, None]
        weights = 1 / np.maximum(np.linalg.norm(ordered - centres[own], axis=1), _SMALLEST_DISTANCE)
        weights = weights.astype(np.float32)
    sums = np.add.reduceat(ordered * weights[:, None], starts)
    without = _normalise(sums[own] - ordered * weights[:, None])
    cosines = np.empty(len(vectors), np.float32)
    cosines[order] = np.einsum("nd,nd->n", ordered, without)
    return Centres(_normalise(sums), cosines, counts)


def nearest_strangers(
    vectors: Vectors, labels: npt.NDArray[np.int64], centres: Vectors
) -> tuple[Vectors, npt.NDArray[np.int64]]:
    """The cosine of each photo to the most similar other person's centre, [N], and who that is, [N]; -1 without one."""
    cosine, person = np.full(len(vectors), -1.0, np.float32), np.full(len(vectors), -1, np.int64)
    for rows, people, similar in _blocks(vectors, centres):
        similar[labels[rows][:, None] == people] = -np.inf
        best = similar.argmax(1)
        values = similar[np.arange(len(best)), best]
        better = np.isfinite(values) & ((values > cosine[rows]) | (person[rows] < 0))
        cosine[rows] = np.where(better, values, cosine[rows])
        person[rows] = np.where(better, people[best], person[rows])
    return cosine, person


def stranger_quantiles(
    vectors: Vectors, labels: npt.NDArray[np.int64], centres: Vectors, shares: Sequence[float]
) -> list[float]:
    """Quantiles of photos' cosines to strangers' centres, of 4,096 people and photos at most; -1 without strangers."""
    people = np.linspace(0, len(centres) - 1, min(len(centres), _BLOCK)).astype(np.int64)
    rows = np.linspace(0, len(vectors) - 1, min(len(vectors), _BLOCK)).astype(np.int64)
    similar = vectors[rows] @ centres[people].T
    strangers = similar[labels[rows][:, None] != people]
    return np.quantile(strangers, shares).tolist() if len(strangers) else [-1.0] * len(shares)


def look_alikes(
    vectors: Vectors, labels: npt.NDArray[np.int64], found: Centres, share: float
) -> list[tuple[int, int, float]]:
    """Pairs of people who pass as each other, and how similar their photos are to the other's centre.

    The mean cosine of either's photos to the other's centre must exceed the `share` quantile of the other's own photos'
    cosines to that centre. All people are compared with all, a tile of 2,048 × 2,048 at a time: beside a mean for each
    person that takes 60 MB, and what is found.
    """
    num_people = len(found.centres)
    order = np.argsort(labels, kind="stable")
    starts = np.cumsum(found.num_photos) - found.num_photos
    means = (np.add.reduceat(vectors[order], starts) / found.num_photos[:, None]).astype(np.float32)
    own = np.split(found.own_cosine[order], starts[1:])
    bars = np.array([np.quantile(part, share) for part in own], np.float32)
    bars[found.num_photos < MIN_PHOTOS] = np.inf
    pairs: list[tuple[int, int, float]] = []
    for first in range(0, num_people, _TILE):
        for second in range(first, num_people, _TILE):
            ones, others = slice(first, first + _TILE), slice(second, second + _TILE)
            forth = means[ones] @ found.centres[others].T
            back = found.centres[ones] @ means[others].T
            is_pair = (forth >= bars[others]) & (back >= bars[ones, None])
            if first == second:
                is_pair = np.triu(is_pair, 1)
            one, other = np.nonzero(is_pair)
            similar = (forth[one, other] + back[one, other]) / 2
            pairs += zip((one + first).tolist(), (other + second).tolist(), similar.tolist(), strict=True)
    return sorted(pairs, key=lambda pair: -pair[2])


def _blocks(
    vectors: Vectors, centres: Vectors
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Vectors]]:
    for row in range(0, len(vectors), _BLOCK):
        rows = np.arange(row, min(row + _BLOCK, len(vectors)))
        for person in range(0, len(centres), _BLOCK):
            people = np.arange(person, min(person + _BLOCK, len(centres)))
            yield rows, people, vectors[rows] @ centres[people].T


def _normalise(vectors: Vectors) -> Vectors:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.maximum(lengths, np.finfo(np.float32).tiny)).astype(np.float32)
