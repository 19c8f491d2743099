"""Clusterings of made-up people, graphs by hand, and measures against loops over pairs and photos."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.errors import UserError
from pipeline.evaluate import clustering as c


def people(num_people: int, photos: int, spread: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors around centres of their own, in mixed order, and whose they are."""
    rng = np.random.default_rng(seed)
    who = rng.permutation(np.repeat(np.arange(num_people), photos))
    centres = np.eye(max(num_people, 8))
    vectors = centres[who] + rng.standard_normal((len(who), centres.shape[1])) * spread
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), who


def graph(num_nodes: int, *edges: tuple[int, int, float]) -> c.Graph:
    left, right, weight = zip(*edges, strict=True) if edges else ((), (), ())
    return c.Graph(num_nodes, np.array(left, np.int64), np.array(right, np.int64), np.array(weight, float))


@pytest.mark.parametrize(
    "cluster",
    [
        lambda x: c.kmeans(x, 6),
        lambda x: c.agglomerative(x, 0.6),
        lambda x: c.dbscan(x, 0.7),
        lambda x: c.hdbscan(x, 5),
        lambda x: c.connected_components(c.neighbour_graph(x, 5, 0.6)),
        lambda x: c.chinese_whispers(c.neighbour_graph(x, 9, 0.5)),
    ],
)
def test_every_clustering_finds_people_who_lie_apart(cluster: Callable[[np.ndarray], np.ndarray]) -> None:
    vectors, who = people(6, 10, 0.1)
    labels = cluster(vectors)
    assert labels.dtype == np.int64
    assert c.pairwise(labels, who) == c.bcubed(labels, who) == c.Agreement(1.0, 1.0)
    assert c.mutual_information(labels, who) == pytest.approx(1.0)
    assert cluster(vectors).tolist() == labels.tolist()


def test_thresholds_are_cosines() -> None:
    radians = np.deg2rad([0.0, 60.0, 180.0])
    vectors = np.stack((np.cos(radians), np.sin(radians)), axis=1)
    for cosine, joined in ((0.49, True), (0.5, True), (0.51, False)):
        for labels in (
            c.agglomerative(vectors, cosine),
            c.dbscan(vectors, cosine),
            c.connected_components(c.neighbour_graph(vectors, 2, cosine - 1e-7)),
        ):
            assert (labels[0] == labels[1] != -1) == joined, (cosine, labels)
            assert labels[2] not in labels[:2] or labels[2] == -1


def test_few_photos() -> None:
    none, one = np.empty((0, 3)), np.eye(3)[:1]
    for cluster in (
        lambda x: c.agglomerative(x, 0.5),
        lambda x: c.dbscan(x, 0.5),
        c.hdbscan,
        lambda x: c.connected_components(c.neighbour_graph(x, 3, 0.5)),
        lambda x: c.chinese_whispers(c.neighbour_graph(x, 3, 0.5)),
    ):
        assert cluster(none).tolist() == []
        assert len(cluster(one)) == 1
    assert c.kmeans(one, 1).tolist() == [0]
    for vectors, number in ((none, 1), (one, 2), (one, 0)):
        with pytest.raises(UserError, match=f"clusters: {number}; expected from 1 to {len(vectors)}"):
            c.kmeans(vectors, number)
    with pytest.raises(UserError, match="embeddings: embedding 0 is not finite"):
        c.dbscan(one * np.nan, 0.5)


def test_equal_embeddings_do_not_make_k_means_complain() -> None:
    # scikit-learn warns that it finds fewer clusters than it was told; warnings are errors here.
    assert c.kmeans(np.tile([[1.0, 0.0]], (4, 1)), 2).tolist() == [0] * 4


def test_the_neighbour_graph_by_hand() -> None:
    degrees = np.deg2rad([0.0, 10.0, 30.0, 100.0])
    vectors = np.stack((np.cos(degrees), np.sin(degrees)), axis=1)
    found = c.neighbour_graph(vectors, 1, 0.5)
    # 0 and 1 have each other, 2 has 1; 3's nearest is 70 degrees away.
    assert (found.left.tolist(), found.right.tolist()) == ([0, 1], [1, 2])
    assert found.weight.tolist() == pytest.approx(np.cos(np.deg2rad([10, 20])).tolist())
    # Photos that are all the same: nobody is their own neighbour, and k others are.
    same = c.neighbour_graph(np.tile(vectors[:1], (5, 1)), 2, 0.5)
    assert (same.left < same.right).all()
    # 0, 1 and 2 have each other; 3 and 4 have 0 and 1.
    assert len(same.left) == 7
    assert set(same.left.tolist() + same.right.tolist()) == set(range(5))


def test_components_by_hand() -> None:
    found = c.connected_components(graph(7, (1, 4, 0.9), (4, 6, 0.9), (2, 3, 0.9)))
    assert found.tolist() == [0, 1, 2, 2, 1, 5, 1]
    assert c.connected_components(graph(3)).tolist() == [0, 1, 2]
    assert c.connected_components(graph(0)).tolist() == []
    chain = np.random.default_rng(0).permutation(2000)
    low, high = np.minimum(chain[1:], chain[:-1]), np.maximum(chain[1:], chain[:-1])
    assert set(c.connected_components(c.Graph(2000, low, high, np.ones(1999))).tolist()) == {0}


@settings(max_examples=50, deadline=None)
@given(num_nodes=st.integers(1, 12), seed=st.integers(0, 2**32 - 1), share=st.floats(0, 0.5))
def test_components_equal_a_search(num_nodes: int, seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    edges = [(a, b, 1.0) for a, b in combinations(range(num_nodes), 2) if rng.random() < share]
    expected = list(range(num_nodes))
    for start in range(num_nodes):
        reached, frontier = {start}, [start]
        while frontier:
            node = frontier.pop()
            new = {b if a == node else a for a, b, _ in edges if node in (a, b)} - reached
            reached |= new
            frontier += new
        expected[start] = min(reached)
    assert c.connected_components(graph(num_nodes, *edges)).tolist() == expected


def test_chinese_whispers_cut_a_weak_bridge() -> None:
    """Two triangles with one weak edge between: components join them, whispers do not."""
    triangles = [(0, 1, 0.9), (0, 2, 0.9), (1, 2, 0.9), (3, 4, 0.9), (3, 5, 0.9), (4, 5, 0.9)]
    bridged = graph(7, *triangles, (2, 3, 0.3))
    assert len(set(c.connected_components(bridged).tolist())) == 2
    for seed in range(5):
        labels = c.chinese_whispers(bridged, seed)
        assert len(set(labels[:3].tolist())) == len(set(labels[3:6].tolist())) == 1
        assert len(set(labels.tolist())) == 3
        assert labels[6] == 6
        assert c.chinese_whispers(bridged, seed).tolist() == labels.tolist()
    assert c.chinese_whispers(graph(0)).tolist() == []


def test_measures_by_hand() -> None:
    truth, labels = np.array([1, 1, 1, 2, 2]), np.array([0, 0, 3, 3, 3])
    # Together: 1 + 3 pairs, right 1 + 1; belonging together: 3 + 1.
    found = c.pairwise(labels, truth)
    assert (found.precision, found.recall, found.f) == (2 / 4, 2 / 4, 0.5)
    found = c.bcubed(labels, truth)
    assert found.precision == pytest.approx((1 + 1 + 1 / 3 + 2 / 3 + 2 / 3) / 5)
    assert found.recall == pytest.approx((2 / 3 + 2 / 3 + 1 / 3 + 1 + 1) / 5)
    assert found.f == pytest.approx(2 * found.precision * found.recall / (found.precision + found.recall))


def test_noise_is_nobodys_photo() -> None:
    truth = np.array([1, 1, 2, 2])
    apart = np.array([-1, -1, -1, -1])
    assert c.pairwise(apart, truth) == c.Agreement(1.0, 0.0)
    assert c.pairwise(apart, truth).f == 0.0
    assert c.bcubed(apart, truth) == c.Agreement(1.0, 0.5)
    assert c.bcubed(apart, np.arange(4)) == c.pairwise(apart, np.arange(4)) == c.Agreement(1.0, 1.0)
    assert c.mutual_information(np.array([0, 0, -1, 5]), truth) == pytest.approx(
        c.mutual_information(np.array([0, 0, 6, 5]), truth)
    )
    for measure in (c.pairwise, c.bcubed, c.mutual_information):
        with pytest.raises(UserError, match="no photos"):
            measure(np.empty(0, np.int64), np.empty(0, np.int64))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-1, 4), st.integers(0, 4)), min_size=1, max_size=25))
def test_measures_equal_loops(photos: list[tuple[int, int]]) -> None:
    labels, truth = (np.array(column) for column in zip(*photos, strict=True))
    together = [[i == j or (a == b != -1) for j, (b, _) in enumerate(photos)] for i, (a, _) in enumerate(photos)]
    belong = [[a == b for _, b in photos] for _, a in photos]
    pairs = list(combinations(range(len(photos)), 2))
    both = sum(together[i][j] and belong[i][j] for i, j in pairs)
    put, due = sum(together[i][j] for i, j in pairs), sum(belong[i][j] for i, j in pairs)
    found = c.pairwise(labels, truth)
    assert found.precision == pytest.approx(both / put if put else 1.0)
    assert found.recall == pytest.approx(both / due if due else 1.0)
    shares = [
        (sum(np.logical_and(t, b)) / sum(t), sum(np.logical_and(t, b)) / sum(b))
        for t, b in zip(together, belong, strict=True)
    ]
    found = c.bcubed(labels, truth)
    assert (found.precision, found.recall) == pytest.approx(tuple(np.mean(shares, axis=0)))
