"""Identification: by hand, with ties, and against loops over all scores."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.errors import UserError
from pipeline.evaluate import identification as ident
from pipeline.evaluate import search
from tests.unit.test_search import TIED, unit


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (search, ident):
        monkeypatch.setattr(module, "PROBE_BLOCK", 3)
    monkeypatch.setattr(search, "GALLERY_BLOCK", 5)


def at_angles(*degrees: float) -> np.ndarray:
    radians = np.deg2rad(degrees)
    return np.stack((np.cos(radians), np.sin(radians)), axis=1)


def loop_ranks(probes: np.ndarray, who: np.ndarray, gallery: np.ndarray, people: np.ndarray) -> list[tuple]:
    """(rank, mate's score, best score of another) of each probe, people scoring as their best photo does."""
    found = []
    for probe, identity in zip(probes, who, strict=True):
        scores: dict[int, float] = {}
        for row, person in zip(gallery, people, strict=True):
            scores[person] = max(scores.get(person, -np.inf), float(probe @ row))
        mate = scores.pop(identity, -np.inf)
        rank = 0 if mate == -np.inf else 1 + sum(score >= mate for score in scores.values())
        found.append((rank, mate, max(scores.values(), default=-np.inf)))
    return found


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_probes=st.integers(0, 8),
    num_gallery=st.integers(1, 40),
    num_people=st.integers(1, 12),
    layout=st.sampled_from(["mixed", "together", "one each"]),
)
def test_ranks_equal_the_loop_with_ties(
    seed: int, num_probes: int, num_gallery: int, num_people: int, layout: str
) -> None:
    rng = np.random.default_rng(seed)
    probes, gallery = rng.choice(TIED, num_probes), rng.choice(TIED, num_gallery)
    who, people = rng.integers(0, num_people, num_probes), rng.integers(0, num_people, num_gallery)
    if layout == "together":
        people = np.sort(people)
    if layout == "one each":
        people = rng.permutation(num_gallery)
    found = ident.enrolled_ranks(probes, who, gallery, people)
    expected = loop_ranks(probes, who, gallery, people)
    assert found.rank.tolist() == [rank for rank, _, _ in expected]
    assert found.mate_score.tolist() == [mate for _, mate, _ in expected]
    assert found.other_score.tolist() == [other for _, _, other in expected]


def test_ranks_equal_the_loop_on_random_vectors() -> None:
    rng = np.random.default_rng(0)
    probes, gallery = unit(rng, 40), unit(rng, 200)
    who, people = rng.integers(0, 60, 40), rng.integers(0, 60, 200)
    found = ident.enrolled_ranks(probes, who, gallery, people)
    assert found.rank.tolist() == [rank for rank, _, _ in loop_ranks(probes, who, gallery, people)]


def test_ranks_and_cmc_by_hand() -> None:
    gallery, people = at_angles(0, 90, 180), np.array([7, 8, 9])
    # 7's probes lie nearest to 7, to 8 (then 7), and to 9 (then 8); 5 is not in the gallery.
    found = ident.enrolled_ranks(at_angles(10, 60, 170, 45), np.array([7, 7, 7, 5]), gallery, people)
    assert found.rank.tolist() == [1, 2, 3, 0]
    assert found.is_mated.tolist() == [True, True, True, False]
    assert found.mate_score[:3].tolist() == pytest.approx(np.cos(np.deg2rad([10, 60, 170])))
    assert found.mate_score[3] == -np.inf
    assert found.other_score.tolist() == pytest.approx(np.cos(np.deg2rad([80, 30, 10, 45])))
    assert [ident.rank_rate(found, k) for k in (1, 2, 3, 100)] == pytest.approx([1 / 3, 2 / 3, 1.0, 1.0])
    assert ident.cumulative_match(found, 4).tolist() == pytest.approx([1 / 3, 2 / 3, 1.0, 1.0])
    assert ident.cumulative_match(found, 1).tolist() == pytest.approx([1 / 3])


def test_a_tie_counts_against_the_model() -> None:
    gallery = at_angles(0, 0, 90)
    found = ident.enrolled_ranks(at_angles(0, 0, 90), np.array([0, 1, 2]), gallery, np.array([0, 1, 2]))
    assert found.rank.tolist() == [2, 2, 1]
    # A model that gives everyone the same embedding finds nobody first.
    same = np.ones((6, 1), np.float32)
    assert set(ident.enrolled_ranks(same, np.arange(6), same, np.arange(6)).rank.tolist()) == {6}
    # Less apart than float32 can tell is a tie, too, whichever came out larger.
    near = at_angles(0.001, 0)
    assert ident.enrolled_ranks(at_angles(0, 0.001), np.array([0, 1]), near, np.array([0, 1])).rank.tolist() == [2, 2]


def test_copies_of_the_mate_rank_before_it_whatever_float32_makes_of_them() -> None:
    rng = np.random.default_rng(0)
    mates, probes = unit(rng, 40, 512), unit(rng, 40, 512)
    gallery, people = np.concatenate((mates, mates)), np.arange(80)
    assert (ident.enrolled_ranks(probes, np.arange(40), gallery, people).rank > 1).all()


def test_several_photos_of_a_stranger_count_once() -> None:
    gallery, people = at_angles(1, 2, 3, 20), np.array([4, 4, 4, 6])
    assert ident.enrolled_ranks(at_angles(0), np.array([6]), gallery, people).rank.tolist() == [2]


def ranks(mated: list[tuple[int, float]], unmated: list[float]) -> ident.Ranks:
    return ident.Ranks(
        rank=np.array([rank for rank, _ in mated] + [0] * len(unmated)),
        mate_score=np.array([score for _, score in mated] + [-np.inf] * len(unmated)),
        other_score=np.array([0.0] * len(mated) + unmated),
    )


def test_open_set_by_hand() -> None:
    """Thirty strangers; at a rate of 0.1 three may be returned, so the threshold is the fourth highest score."""
    strangers = [0.9, 0.8, 0.7, 0.6, *[0.1] * 26]
    found = ranks([(1, 0.95), (1, 0.65), (1, 0.6), (2, 0.8), (1, 0.5)], strangers)
    point = ident.open_set(found, 0.1)
    assert point == ident.OpenSetPoint(fpir=0.1, tpir=2 / 5, threshold=0.6)
    assert ident.open_set(found, 0.1, max_rank=2) == ident.OpenSetPoint(fpir=0.1, tpir=3 / 5, threshold=0.6)
    assert ident.open_set(found, 0.09) is None
    everyone = ident.open_set(found, 1.0)
    assert everyone == ident.OpenSetPoint(fpir=1.0, tpir=4 / 5, threshold=-1.0)


def test_strangers_with_equal_scores_are_returned_together_or_not_at_all() -> None:
    point = ident.open_set(ranks([(1, 0.85), (1, 0.95)], [0.9, *[0.8] * 5, *[0.1] * 24]), 0.1)
    assert point == ident.OpenSetPoint(fpir=1 / 30, tpir=1.0, threshold=0.8)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), num_unmated=st.integers(30, 80), fpir=st.sampled_from([0.1, 0.25, 0.5]))
def test_open_set_is_the_best_of_all_thresholds(seed: int, num_unmated: int, fpir: float) -> None:
    rng = np.random.default_rng(seed)
    mated = [(int(rng.integers(1, 3)), float(rng.integers(0, 20)) / 20) for _ in range(10)]
    unmated = (rng.integers(0, 20, num_unmated) / 20).tolist()
    point = ident.open_set(ranks(mated, unmated), fpir)
    assert point is not None
    rates = []
    for threshold in [-1.0, *(n / 20 for n in range(20))]:
        if sum(score > threshold for score in unmated) <= fpir * num_unmated + 1e-9:
            rates.append(sum(score > threshold and rank == 1 for rank, score in mated) / 10)
    assert point.tpir == pytest.approx(max(rates))
    assert point.fpir <= fpir + 1e-12


def neighbours(rows: list[list[int]], scores: list[list[float]]) -> search.Neighbours:
    return search.Neighbours(np.array(rows), np.array(scores), "blocks")


def test_votes_by_hand() -> None:
    people = np.array([5, 5, 6, 6, 7])
    found = neighbours(
        [[4, 0, 1, 2], [4, 2, 0, 1], [0, 2, 3, 1]], [[0.9, 0.5, 0.4, 0.3], [0.9, 0.8, 0.7, 0.2], [0.9, 0.8, 0.7, 0.1]]
    )
    assert ident.vote(found, people, 1).tolist() == [7, 7, 5]
    # 5 has two votes; all have one, and the highest score is 7's; 6 has two.
    assert ident.vote(found, people, 3).tolist() == [5, 7, 6]
    # Two votes each in the last row: 1.5 for 6 against 1.0 for 5.
    assert ident.vote(found, people, 4).tolist() == [5, 5, 6]
    # The same votes and the same sums: the nearest.
    assert ident.vote(neighbours([[2, 0]], [[0.5, 0.5]]), people, 2).tolist() == [6]
    assert ident.vote(neighbours([[0, 2]], [[0.5, 0.5]]), people, 2).tolist() == [5]
    with pytest.raises(UserError, match="from 1 to 4"):
        ident.vote(found, people, 5)
    assert (
        ident.vote(search.Neighbours(np.empty((0, 4), np.int64), np.empty((0, 4)), "blocks"), people, 3).tolist() == []
    )


def test_distractors_by_hand() -> None:
    # Photos of 1 at 0 and 10 degrees, one of 2 that has no other. Distractors at 90, 5 and 10 degrees.
    probes, who = at_angles(0, 10, 0), np.array([1, 1, 2])
    found = ident.rank1_among_distractors(probes, who, at_angles(90, -9, 5, 10), [0, 1, 2, 3, 4])
    # -9 is nearer to 0 than 10 is, and farther from 10 than 0 is.
    assert found == {0: 1.0, 1: 1.0, 2: 0.5, 3: 0.0, 4: 0.0}
    # A distractor exactly as near as the mate counts against the model.
    assert ident.rank1_among_distractors(probes, who, at_angles(10), [1]) == {1: 0.0}


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), num_probes=st.integers(2, 10), num_distractors=st.integers(0, 30))
def test_distractors_equal_the_loop(seed: int, num_probes: int, num_distractors: int) -> None:
    rng = np.random.default_rng(seed)
    probes, distractors = rng.choice(TIED, num_probes), rng.choice(TIED, num_distractors)
    who = rng.integers(0, 3, num_probes)
    trials = [(i, j) for i in range(num_probes) for j in range(num_probes) if i != j and who[i] == who[j]]
    sizes = sorted({0, num_distractors, *rng.integers(0, num_distractors + 1, 3).tolist()})
    if not trials:
        with pytest.raises(UserError, match="nobody has two photos"):
            ident.rank1_among_distractors(probes, who, distractors, sizes)
        return
    expected = {
        n: np.mean([all(probes[i] @ row < probes[i] @ probes[j] for row in distractors[:n]) for i, j in trials])
        for n in sizes
    }
    assert ident.rank1_among_distractors(probes, who, distractors, sizes) == pytest.approx(expected)


def test_users_mistakes() -> None:
    vectors = at_angles(0, 90)
    nobody = ident.enrolled_ranks(vectors, np.array([1, 2]), vectors, np.array([3, 4]))
    assert nobody.rank.tolist() == [0, 0]
    for call in (
        lambda: ident.rank_rate(nobody, 1),
        lambda: ident.cumulative_match(nobody, 5),
        lambda: ident.open_set(nobody, 0.1),
    ):
        with pytest.raises(UserError, match="probes: none of a person in the gallery"):
            call()
    with pytest.raises(UserError, match="gallery: no embeddings"):
        ident.enrolled_ranks(vectors, np.array([1, 2]), vectors[:0], np.array([], np.int64))
    with pytest.raises(UserError, match="gallery: embeddings of 3; expected 2"):
        ident.enrolled_ranks(vectors, np.array([1, 2]), np.eye(3), np.arange(3))
    for sizes in ([3], [-1], []):
        with pytest.raises(UserError, match="numbers from 0 to 2"):
            ident.rank1_among_distractors(vectors, np.array([1, 1]), vectors, sizes)
