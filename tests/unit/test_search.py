"""Search in blocks against a sort of all scores; ties, block borders, faiss."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.errors import UserError
from pipeline.evaluate import search

TIED = np.array(list(itertools.product((0.5, -0.5), repeat=4)), np.float32)
"""Unit vectors whose cosines are -1, -0.5, 0, 0.5 and 1, all exact."""


def unit(rng: np.random.Generator, count: int, dimension: int = 32) -> np.ndarray:
    vectors = rng.standard_normal((count, dimension))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def loop_nearest(probes: np.ndarray, gallery: np.ndarray, k: int) -> list[list[int]]:
    """Sort all scores, of equal ones the lower row first."""
    found = []
    for probe in probes.astype(np.float64):
        scores = [float(np.dot(probe, row)) for row in gallery.astype(np.float64)]
        found.append(sorted(range(len(scores)), key=lambda row: (-scores[row], row))[:k])
    return found


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "PROBE_BLOCK", 3)
    monkeypatch.setattr(search, "GALLERY_BLOCK", 5)
    monkeypatch.setattr(search, "_PIECE", 2)
    monkeypatch.setattr(search, "_PAIR_BLOCK", 4)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), num_probes=st.integers(0, 8), num_gallery=st.integers(1, 60), k=st.integers(1, 12)
)
def test_nearest_equals_the_loop_with_ties(seed: int, num_probes: int, num_gallery: int, k: int) -> None:
    """Sixteen different vectors at most: a probe's nearest are many equal ones, more than the spare candidates."""
    rng = np.random.default_rng(seed)
    probes, gallery = rng.choice(TIED, num_probes), rng.choice(TIED, num_gallery)
    found = search.nearest(probes, gallery, k, engine="blocks")
    assert found.rows.tolist() == loop_nearest(probes, gallery, k)
    assert found.rows.shape == (num_probes, min(k, num_gallery))
    expected = np.take_along_axis(probes @ gallery.T, found.rows, axis=1) if num_probes else found.scores
    assert found.scores.tolist() == expected.tolist()


@pytest.mark.parametrize("dimension", [2, 128])
def test_nearest_equals_the_loop_on_random_vectors(dimension: int) -> None:
    rng = np.random.default_rng(0)
    probes, gallery = unit(rng, 20, dimension), unit(rng, 300, dimension)
    gallery[50:100] = gallery[:50]
    found = search.nearest(probes, gallery, 10, engine="blocks")
    assert found.rows.tolist() == loop_nearest(probes, gallery, 10)
    assert (np.diff(found.scores, axis=1) <= 0).all()


def test_scores_closer_than_float32_can_tell_are_told_apart() -> None:
    """Two rows whose cosines with the probe differ by less than a float32 step near 1."""
    angles = np.array([0.0, 3e-4, 2e-4, 1e-4])
    gallery = np.stack((np.cos(angles), np.sin(angles)), axis=1).astype(np.float32)
    probe = gallery[:1]
    exact = gallery.astype(np.float64) @ probe[0].astype(np.float64)
    found = search.nearest(probe, gallery, 4, engine="blocks")
    assert found.rows[0].tolist() == sorted(range(4), key=lambda row: (-exact[row], row))


def test_results_do_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    probes, gallery = unit(rng, 7), unit(rng, 64)
    one = search.nearest(probes, gallery, 5, engine="blocks")
    monkeypatch.setattr(search, "GALLERY_BLOCK", 64)
    monkeypatch.setattr(search, "PROBE_BLOCK", 7)
    other = search.nearest(probes, gallery, 5, engine="blocks")
    assert one.rows.tolist() == other.rows.tolist()
    assert one.scores.tolist() == other.scores.tolist()


def test_faiss_finds_the_same() -> None:
    pytest.importorskip("faiss")
    rng = np.random.default_rng(2)
    for probes, gallery in ((unit(rng, 20), unit(rng, 300)), (rng.choice(TIED, 9), rng.choice(TIED, 60))):
        ours, theirs = (search.nearest(probes, gallery, 7, engine=engine) for engine in ("blocks", "faiss"))
        assert theirs.engine == "faiss"
        assert ours.rows.tolist() == theirs.rows.tolist()
        assert ours.scores.tolist() == theirs.scores.tolist()
    assert search.nearest(probes, gallery, 1).engine == "faiss"


def test_faiss_is_asked_for_by_name_only_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "find_spec", lambda _: None)
    assert search.nearest(TIED, TIED, 1).engine == "blocks"
    with pytest.raises(UserError, match="faiss: not installed"):
        search.nearest(TIED, TIED, 1, engine="faiss")


def test_products_of_pairs_by_hand() -> None:
    left = np.array([[0.6, 0.8], [1.0, 0.0]], np.float32)
    found = search.pair_products(left, left, np.array([0, 1, 0, 0, 1, 1]), np.array([0, 1, 1, 0, 0, 0]))
    assert found.dtype == np.float64
    assert found.tolist() == pytest.approx([1.0, 1.0, 0.6, 1.0, 0.6, 0.6])


def test_empty_gallery_and_read_only_embeddings() -> None:
    none = search.nearest(TIED, np.empty((0, 4), np.float32), 3)
    assert none.rows.shape == none.scores.shape == (16, 0)
    vectors = TIED.copy()
    vectors.flags.writeable = False
    assert search.nearest(vectors, vectors, 1).rows[:, 0].tolist() == list(range(16))
    assert search.require_unit(vectors, "x") is vectors


def test_broken_embeddings_are_named() -> None:
    bad = np.tile(TIED, (2, 1))
    bad[21, 2] = np.nan
    with pytest.raises(UserError, match="gallery: embedding 21 is not finite or not of length 1"):
        search.nearest(TIED, bad, 1)
    with pytest.raises(UserError, match="probes: embedding 0 is not finite"):
        search.nearest(TIED * 2, TIED, 1)
    with pytest.raises(UserError, match="gallery: embeddings of 3; expected 4, as the probes'"):
        search.nearest(TIED, np.eye(3), 1)
    with pytest.raises(UserError, match="an array of 1 dimensions"):
        search.nearest(TIED[0], TIED, 1)
