"""Clustering of embeddings without knowing who is on them, and measures of how well that goes.

A clustering is an array of labels, [N] int64: photos with the same one are of one person, -1 says "of nobody else".
The usual algorithms are scikit-learn's; on vectors of length 1 Euclidean distance and cosine order pairs alike, so all
of them speak of cosines here. Clusters by graph never look at more than each photo's nearest neighbours.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.cluster import DBSCAN, HDBSCAN, AgglomerativeClustering, KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import normalized_mutual_info_score

from pipeline.config.errors import UserError
from pipeline.evaluate.search import nearest, require_unit
from pipeline.evaluate.verification import Floats, Ints

_ROUNDS = 20


@dataclass(frozen=True)
class Graph:
    """Who is alike whom; an edge has two ends and no direction, and stands once, `left` < `right`."""

    num_nodes: int
    left: Ints
    """[E]"""
    right: Ints
    weight: Floats
    """Cosines."""


@dataclass(frozen=True)
class Agreement:
    """How well a clustering finds people."""

    precision: float
    """Of what is put together, the share that belongs together; 1 where nothing is put together."""
    recall: float
    """Of what belongs together, the share that is put together; 1 where nothing belongs together."""

    @property
    def f(self) -> float:
        """The harmonic mean."""
        total = self.precision + self.recall
        return 2.0 * self.precision * self.recall / total if total > 0.0 else 0.0


def kmeans(embeddings: npt.NDArray[np.floating], num_clusters: int, seed: int = 0) -> Ints:
    """k-means (scikit-learn: k-means++, the best of ten starts), for a known number of people.

    Raises:
        UserError: fewer photos than clusters, or bad embeddings, as for all functions here.
    """
    vectors = require_unit(embeddings, "embeddings")
    if not 1 <= num_clusters <= len(vectors):
        raise UserError("clusters", str(num_clusters), f"from 1 to {len(vectors)}, the number of photos")
    with warnings.catch_warnings():
        # Equal embeddings make fewer clusters than people: the figures say so, the terminal need not.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return _labels(KMeans(num_clusters, n_init=10, random_state=seed).fit(vectors))


def agglomerative(embeddings: npt.NDArray[np.floating], min_cosine: float) -> Ints:
    """Average linkage: merge clusters while the mean cosine between them is at least `min_cosine`.

    Looks at all pairs: 8 N² bytes of memory, 3 GiB for 20,000 photos.
    """
    vectors = require_unit(embeddings, "embeddings")
    if len(vectors) < 2:
        return np.zeros(len(vectors), np.int64)
    # scikit-learn merges strictly below the threshold, and rounds cosine distances to float32's precision.
    limit = float(np.nextafter(1.0 - min_cosine + 1e-6, np.inf))
    found = AgglomerativeClustering(n_clusters=None, metric="cosine", linkage="average", distance_threshold=limit)
    return _labels(found.fit(vectors))


def dbscan(embeddings: npt.NDArray[np.floating], min_cosine: float, min_photos: int = 2) -> Ints:
    """DBSCAN (Ester et al. 1996): photos with `min_photos` within `min_cosine`, themselves included, start clusters."""
    vectors = require_unit(embeddings, "embeddings")
    radius = float(np.sqrt(max(2.0 - 2.0 * min_cosine, 0.0))) + 1e-6
    if len(vectors) == 0:
        return np.empty(0, np.int64)
    return _labels(DBSCAN(eps=radius, min_samples=min_photos).fit(vectors))


def hdbscan(embeddings: npt.NDArray[np.floating], min_photos: int = 2) -> Ints:
    """HDBSCAN (Campello, Moulavi & Sander 2013): clusters of at least `min_photos`, of densities of their own."""
    vectors = require_unit(embeddings, "embeddings")
    if len(vectors) < min_photos:
        return np.full(len(vectors), -1)
    return _labels(HDBSCAN(min_cluster_size=min_photos, copy=True).fit(vectors))


def neighbour_graph(embeddings: npt.NDArray[np.floating], k: int, min_cosine: float) -> Graph:
    """Join each photo with its k nearest others, where their cosine is at least `min_cosine`.

    An edge stands when one of the two has the other among its nearest. Memory: the embeddings and k edges a photo.
    """
    found = nearest(embeddings, embeddings, k + 1)
    photo = np.broadcast_to(np.arange(len(found.rows))[:, None], found.rows.shape)
    # A photo that many others equal need not be among its own neighbours; then the last of them is one too many.
    left_out = found.rows == photo
    left_out[~left_out.any(axis=1), -1:] = True
    kept = ~left_out & (found.scores >= min_cosine)
    photo, other, weight = photo[kept], found.rows[kept], found.scores[kept]
    low, high = np.minimum(photo, other), np.maximum(photo, other)
    num_nodes = max(len(found.rows), 1)
    edges, first = np.unique(low * num_nodes + high, return_index=True)
    return Graph(len(found.rows), edges // num_nodes, edges % num_nodes, weight[first])


def connected_components(graph: Graph) -> Ints:
    """Everything that a path joins is one cluster; its label is its lowest node."""
    label = np.arange(graph.num_nodes)
    while True:
        lowest = label.copy()
        np.minimum.at(lowest, graph.left, label[graph.right])
        np.minimum.at(lowest, graph.right, label[graph.left])
        # Follow labels to their labels: a chain of n nodes takes about log n rounds instead of n.
        lowest = np.minimum(lowest, lowest[lowest])
        if (lowest == label).all():
            return label
        label = lowest


def chinese_whispers(graph: Graph, seed: int = 0) -> Ints:
    """Chinese whispers (Biemann 2006): in turn, each node takes the label that weighs most among its neighbours.

    The order of nodes is drawn anew each round by `seed`; of labels with the same weight the lowest counts; it ends
    when a round changes nothing, or after 20. The same graph and seed give the same labels.
    """
    begins, neighbour, weight = _neighbours(graph)
    label = np.arange(graph.num_nodes)
    random = np.random.RandomState(seed)
    for _ in range(_ROUNDS):
        changed = False
        for node in random.permutation(graph.num_nodes).tolist():
            part = slice(begins[node], begins[node + 1])
            if part.start == part.stop:
                continue
            candidates, place = np.unique(label[neighbour[part]], return_inverse=True)
            best = candidates[np.argmax(np.bincount(place, weight[part]))]
            changed |= bool(label[node] != best)
            label[node] = best
        if not changed:
            break
    return label


def pairwise(labels: Ints, truth: Ints) -> Agreement:
    """Over pairs of photos: put together and of one person.

    Args:
        labels: [N] a clustering.
        truth: [N] who is on the photos.

    Raises:
        UserError: no photos.
    """
    counts = _count(labels, truth)
    both, put, due = (float(np.sum(n * (n - 1) // 2)) for n in (counts.both, counts.of_cluster, counts.of_person))
    return Agreement(precision=both / put if put else 1.0, recall=both / due if due else 1.0)


def bcubed(labels: Ints, truth: Ints) -> Agreement:
    """B-cubed (Bagga & Baldwin 1998; Amigó et al. 2009): the mean over photos of each one's precision and recall.

    A photo's precision is the share of its cluster that is of its person; its recall the share of its person's photos
    that are in its cluster; itself included in both. Large clusters do not dominate as they do over pairs.

    Raises:
        UserError: no photos.
    """
    counts = _count(labels, truth)
    shares = [counts.both / sizes for sizes in (counts.of_cluster[counts.cluster], counts.of_person[counts.person])]
    precision, recall = (float(np.average(share, weights=counts.both)) for share in shares)
    return Agreement(precision, recall)


def mutual_information(labels: Ints, truth: Ints) -> float:
    """NMI, normalised by the arithmetic mean of both entropies, 0 to 1 (scikit-learn).

    Raises:
        UserError: no photos.
    """
    _count(labels, truth)
    return float(normalized_mutual_info_score(truth, _alone(labels)))


class _Counts(NamedTuple):
    """Numbers of photos; the first three have an entry for each cluster and person that share photos."""

    both: Ints
    cluster: Ints
    person: Ints
    of_cluster: Ints
    of_person: Ints


def _count(labels: Ints, truth: Ints) -> _Counts:
    if len(labels) == 0:
        raise UserError("labels", "no photos", "at least one")
    cluster = np.unique(_alone(labels), return_inverse=True)[1]
    person = np.unique(truth, return_inverse=True)[1]
    of_person = np.bincount(person)
    cells, both = np.unique(cluster * len(of_person) + person, return_counts=True)
    return _Counts(both, cells // len(of_person), cells % len(of_person), np.bincount(cluster), of_person)


def _alone(labels: Ints) -> Ints:
    """Labels in which each -1 is a cluster of its own."""
    noise = labels == -1
    return np.where(noise, labels.max(initial=0) + np.cumsum(noise), labels)


def _neighbours(graph: Graph) -> tuple[Ints, Ints, Floats]:
    """Each node's neighbours in one array, where each node's begin, and the edges' weights."""
    node = np.concatenate((graph.left, graph.right))
    order = np.argsort(node, kind="stable")
    begins = np.searchsorted(node[order], np.arange(graph.num_nodes + 1))
    return (
        begins,
        np.concatenate((graph.right, graph.left))[order],
        np.concatenate((graph.weight, graph.weight))[order],
    )


def _labels(fitted: KMeans | AgglomerativeClustering | DBSCAN | HDBSCAN) -> Ints:
    return np.asarray(fitted.labels_, np.int64)
