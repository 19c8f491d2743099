"""How well photos fall into people: thresholds chosen on one half of the people, measured on the other half."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from pipeline.config.errors import UserError
from pipeline.evaluate import clustering
from pipeline.evaluate.embed import Embeddings
from pipeline.evaluate.pairs import Photo
from pipeline.evaluate.result_sections import ClusterAgreement, ClusterFigures, Clusters
from pipeline.evaluate.search import Vectors
from pipeline.evaluate.verification import Floats, Ints

THRESHOLDS: Floats = np.arange(10, 96, 5) / 100
"""Cosines that are tried."""
MOST_PHOTOS = 4000
"""Of a half: average linkage compares all with all, once a threshold."""
NEIGHBOURS = 20

_PROTOCOL = (
    "people dealt into two halves by lot; of the cosines 0.10, 0.15 … 0.95 the one with the best B-cubed F on the "
    "first half's photos (of equal ones the middle), measured on the second half's"
)


def measure_clusters(found: Embeddings, where: object, seed: int = 0, most_photos: int = MOST_PHOTOS) -> Clusters:
    """Cluster the photos of half of the people in five ways.

    Args:
        found: embeddings of the photos of all people.
        where: what to name in messages.
        seed: of the halves, of k-means and of Chinese whispers.
        most_photos: of a half; people are taken in the order of the lot, but for those whose photos no longer fit.

    Raises:
        UserError: fewer than four people, a half with room for fewer than two of them, or in which nobody
            has two photos.
    """
    order = sorted(range(len(found.photos)), key=lambda row: found.photos[row])
    person, halves = deal_halves([found.photos[row] for row in order], where, seed, most_photos)
    vectors = found.vectors[order].astype(np.float32)
    (to_choose, own), (measured, truth) = ((vectors[rows], person[rows]) for rows in halves)
    num_people = len(np.unique(truth))
    methods = [
        _measure("k-means", "the number of people", None, clustering.kmeans(measured, num_people, seed), truth),
        _tuned("average linkage", "a threshold", clustering.agglomerative, to_choose, own, measured, truth),
        _tuned("DBSCAN", "a threshold", clustering.dbscan, to_choose, own, measured, truth),
        _measure("HDBSCAN", "nothing", None, clustering.hdbscan(measured), truth),
        _tuned("Chinese whispers", "a threshold", _whispers(seed), to_choose, own, measured, truth),
    ]
    return Clusters(
        protocol=_PROTOCOL,
        num_people_to_choose=len(np.unique(own)),
        num_photos_to_choose=len(own),
        num_people=num_people,
        num_photos=len(truth),
        num_left_out=len(order) - len(own) - len(truth),
        methods=methods,
    )


def deal_halves(
    photos: Sequence[Photo], where: object, seed: int = 0, most_photos: int = MOST_PHOTOS
) -> tuple[Ints, tuple[Ints, Ints]]:
    """Who is on each photo, as a number, and the places of the photos of either half of the people.

    Args:
        photos: in order.
        where, seed, most_photos: see `measure_clusters`.

    Raises:
        UserError: as `measure_clusters`.
    """
    names, person = np.unique([photo.identity for photo in photos], return_inverse=True)
    if len(names) < 4:
        raise UserError(where, f"{len(names)} people to cluster", "at least 4, two in each half", "leave --cluster out")
    # RandomState: its stream is frozen, so the same seed makes the same halves with any numpy version.
    lot = np.random.RandomState(seed).permutation(len(names))
    middle = (len(names) + 1) // 2
    first, second = (_take(people, person, most_photos) for people in (lot[:middle], lot[middle:]))
    for rows in (first, second):
        if (num_people := len(np.unique(person[rows]))) < 2:
            people = "1 person" if num_people == 1 else f"{num_people} people"
            found = f"{people} with at most {most_photos:,} photos in a half"
            raise UserError(where, found, "at least 2", "leave --cluster out")
        if len(np.unique(person[rows])) == len(rows):
            raise UserError(
                where, "a half of the people with a photo each", "people with several photos", "leave --cluster out"
            )
    return person, (first, second)


def _take(people: Ints, person: Ints, most_photos: int) -> Ints:
    """Rows of these people's photos, person by person; a person whose photos no longer fit is passed over."""
    counts = np.bincount(person)
    taken, room = [], most_photos
    for one in people:
        if counts[one] <= room:
            taken.append(one)
            room -= counts[one]
    return np.flatnonzero(np.isin(person, taken))


def _whispers(seed: int) -> Callable[[Vectors, float], Ints]:
    """Chinese whispers over each photo's nearest neighbours above a cosine."""

    def cluster(vectors: Vectors, min_cosine: float) -> Ints:
        graph = clustering.neighbour_graph(vectors, min(NEIGHBOURS, len(vectors) - 1), min_cosine)
        return clustering.chinese_whispers(graph, seed)

    return cluster


def _tuned(
    method: str,
    given: str,
    cluster: Callable[[Vectors, float], Ints],
    to_choose: Vectors,
    own: Ints,
    measured: Vectors,
    truth: Ints,
) -> ClusterFigures:
    """A method with the threshold that is best on the first half."""
    scores = np.array([clustering.bcubed(cluster(to_choose, float(cosine)), own).f for cosine in THRESHOLDS])
    # The middle of equal ones: at either end of a range that suits these people, others would soon be torn or mixed.
    equal = np.flatnonzero(scores == scores.max())
    best = float(THRESHOLDS[equal[len(equal) // 2]])
    return _measure(method, given, best, cluster(measured, best), truth)


def _measure(method: str, given: str, threshold: float | None, labels: Ints, truth: Ints) -> ClusterFigures:
    alone = int(np.count_nonzero(labels == -1))
    return ClusterFigures(
        method=method,
        given=given,
        threshold=threshold,
        num_clusters=len(np.unique(labels[labels != -1])) + alone,
        pairwise=_agreement(clustering.pairwise(labels, truth)),
        bcubed=_agreement(clustering.bcubed(labels, truth)),
        nmi=clustering.mutual_information(labels, truth),
    )


def _agreement(found: clustering.Agreement) -> ClusterAgreement:
    return ClusterAgreement(precision=found.precision, recall=found.recall, f=found.f)
