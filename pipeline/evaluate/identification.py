"""Measures of identification: "who of these people is it?".

Probes are searched among a gallery. Where the gallery holds other photos of a person, these are the mates of the
person's probes. Ties count against the model: whoever scores within float32 rounding of the mate ranks before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.config.errors import UserError
from pipeline.evaluate.search import (
    PROBE_BLOCK,
    Neighbours,
    Vectors,
    block_edges,
    pair_products,
    require_unit,
    score_blocks,
    score_rounding,
)
from pipeline.evaluate.verification import Bools, Floats, Ints, least_different_pairs


@dataclass(frozen=True)
class Ranks:
    """How each probe fares among the gallery's people."""

    rank: Ints
    """[Q] of the right person, from 1: one more than the others who score at least as high. 0 without mates."""
    mate_score: Floats
    """[Q] cosine with the most alike mate; -inf without mates."""
    other_score: Floats
    """[Q] cosine with the most alike photo of another person; -inf where there is none."""

    @property
    def is_mated(self) -> Bools:
        """[Q] whether the probe's person is in the gallery."""
        return self.rank > 0


@dataclass(frozen=True)
class OpenSetPoint:
    """What a threshold on the score does to searches for people who may not be in the gallery."""

    fpir: float
    """Reached: share of searches without mates that return anybody."""
    tpir: float
    """Share of searches with mates that return the right person among the first ranks; 1 - FNIR."""
    threshold: float
    """People who score above it are returned; -1 returns everybody but the exact opposite."""


def enrolled_ranks(
    probes: npt.NDArray[np.floating],
    probe_identity: Ints,
    gallery: npt.NDArray[np.floating],
    gallery_identity: Ints,
) -> Ranks:
    """Rank every probe's person among all people of the gallery, exactly, in one pass over blocks of scores.

    A person with several photos in the gallery scores as the most alike of them does, and counts once. A probe must
    not be in the gallery itself. Memory: both matrices as float32, and some 50 MiB; of a gallery that is not in the
    order of people, blocks are copied as they are used.

    Args:
        probes, gallery: [Q, D] and [G, D], L2-normalised.
        probe_identity, gallery_identity: [Q] and [G], any whole numbers.

    Raises:
        UserError: embeddings that are not finite, not of length 1 or of two lengths, or no gallery.
    """
    probes, gallery = require_unit(probes, "probes"), require_unit(gallery, "gallery")
    if len(gallery) == 0:
        raise UserError("gallery", "no embeddings", "at least one")
    if probes.shape[1] != gallery.shape[1]:
        raise UserError("gallery", f"embeddings of {gallery.shape[1]}", f"{probes.shape[1]}, as the probes'")
    people = _People(gallery_identity)
    first, last = people.places(probe_identity)
    mate_score = _best_mates(probes, gallery, people, first, last)
    rank = (last > first).astype(np.int64)
    other_score = np.full(len(probes), -np.inf)
    limit = (mate_score - score_rounding(gallery.shape[1])).astype(np.float32)
    edges = people.edges()
    for start in range(0, len(probes), PROBE_BLOCK):
        block = slice(start, start + PROBE_BLOCK)
        mates = (first[block], last[block])
        _rank_block(probes[block], gallery, people, edges, *mates, limit[block], rank[block], other_score[block])
    return Ranks(rank, mate_score, other_score)


def rank_rate(ranks: Ranks, k: int) -> float:
    """Share of the probes with mates whose person is among the first k: closed-set rank-k identification.

    Raises:
        UserError: no probe has a mate.
    """
    mated = _mated(ranks)
    return float(np.count_nonzero(mated <= k) / len(mated))


def cumulative_match(ranks: Ranks, up_to: int) -> Floats:
    """[up_to] the CMC: `rank_rate` at 1, 2, … (Phillips et al. 2000; ISO/IEC 19795-1)."""
    mated = _mated(ranks)
    return np.cumsum(np.bincount(mated.clip(max=up_to + 1), minlength=up_to + 2)[1 : up_to + 1]) / len(mated)


def open_set(ranks: Ranks, fpir: float, max_rank: int = 1) -> OpenSetPoint | None:
    """TPIR at FPIR (NIST FRVT 1:N, Grother, Ngan & Hanaoka 2019, section 3): at the laxest threshold that allows it.

    Args:
        ranks: of probes, some with mates and some without.
        fpir: the largest share of searches without mates that may return anybody.
        max_rank: the right person counts only among so many first ones.

    Returns:
        None when there are fewer than 3/FPIR probes without mates, see `verification.least_different_pairs`.

    Raises:
        UserError: no probe has a mate.
    """
    needed = least_different_pairs(fpir)
    mated = ranks.is_mated
    if not mated.any():
        raise UserError("probes", "none of a person in the gallery", "at least one")
    unmated = np.sort(ranks.other_score[~mated])[::-1]
    if len(unmated) < needed:
        return None
    allowed = int(np.floor(fpir * len(unmated) + 1e-9))
    threshold = float(unmated[allowed]) if allowed < len(unmated) else -1.0
    returned = (ranks.mate_score[mated] > threshold) & (ranks.rank[mated] <= max_rank)
    return OpenSetPoint(fpir=float(np.mean(unmated > threshold)), tpir=float(np.mean(returned)), threshold=threshold)


def vote(neighbours: Neighbours, gallery_identity: Ints, k: int) -> Ints:
    """[Q] the person that most of the first k neighbours show.

    Of several with as many votes, the one with the larger sum of scores; of these, the one who comes first.

    Raises:
        UserError: there are no k neighbours.
    """
    if not 0 < k <= neighbours.rows.shape[1]:
        raise UserError("k", str(k), f"from 1 to {neighbours.rows.shape[1]}, the neighbours there are")
    people, scores = gallery_identity[neighbours.rows[:, :k]], neighbours.scores[:, :k]
    alike = people[:, :, None] == people[:, None, :]
    votes = alike.sum(axis=2)
    sums = np.where(votes == votes.max(axis=1, keepdims=True), (alike * scores[:, None, :]).sum(axis=2), -np.inf)
    # argmax takes the first of equals, and neighbours stand best first.
    return np.asarray(people[np.arange(len(people)), np.argmax(sums, axis=1)])


def rank1_among_distractors(
    probes: npt.NDArray[np.floating],
    probe_identity: Ints,
    distractors: npt.NDArray[np.floating],
    sizes: Sequence[int],
) -> dict[int, float]:
    """Rank-1 identification among strangers (MegaFace challenge 1, Kemelmacher-Shlizerman et al. 2016).

    Every ordered pair of photos of a person is one trial: the first is searched among the second and the first n
    distractors, and found when no distractor scores as high as the second. Other probes are not in the gallery.

    Args:
        probes: [Q, D], L2-normalised.
        probe_identity: [Q]
        distractors: [G, D], L2-normalised, of nobody among the probes.
        sizes: the numbers n of distractors, each at most G.

    Returns:
        The share of trials found, by n.

    Raises:
        UserError: more distractors asked for than there are, no person with two probes, or bad embeddings.
    """
    probes, distractors = require_unit(probes, "probes"), require_unit(distractors, "distractors")
    if not sizes or min(sizes) < 0 or max(sizes) > len(distractors):
        raise UserError("sizes", str(list(sizes)), f"numbers from 0 to {len(distractors):,}, the distractors there are")
    people = _People(probe_identity)
    first, last = people.places(probe_identity)
    trial = np.repeat(np.arange(len(probes)), last - first)
    mate = people.order[_ranges(first, last)]
    trial, mate = trial[trial != mate], mate[trial != mate]
    if len(trial) == 0:
        raise UserError("probes", "nobody has two photos", "at least two photos of somebody")
    found = pair_products(probes, probes, trial, mate) - score_rounding(probes.shape[1])
    ends = sorted(set(sizes))
    edges = np.unique(np.concatenate((block_edges(ends[-1]), ends, [0]))).astype(np.int64)
    highest = np.empty((len(probes), len(edges)), np.float32)  # of the distractors before each edge
    for start in range(0, len(probes), PROBE_BLOCK):
        block = probes[start : start + PROBE_BLOCK]
        running = np.full(len(block), -np.inf, np.float32)
        highest[start : start + len(block), 0] = running
        for number, (_, scores) in enumerate(score_blocks(block, distractors, edges), start=1):
            running = np.maximum(running, scores.max(axis=1))
            highest[start : start + len(block), number] = running
    places = np.searchsorted(edges, ends)
    return {n: float(np.mean(found > highest[trial, place])) for n, place in zip(ends, places.tolist(), strict=True)}


def _mated(ranks: Ranks) -> Ints:
    """The ranks of the probes with mates.

    Raises:
        UserError: there are none.
    """
    mated = ranks.rank[ranks.is_mated]
    if len(mated) == 0:
        raise UserError("probes", "none of a person in the gallery", "at least one")
    return mated


class _People:
    """The gallery's rows put together by person."""

    def __init__(self, identity: Ints) -> None:
        self.order = np.argsort(identity, kind="stable")
        self._ordered = identity[self.order]
        self.begins: Ints = np.unique(self._ordered, return_index=True)[1]
        """[people] the place where each person's rows begin."""
        self.is_one_each = len(self.begins) == len(identity)
        # Nothing needs to be put together then, and blocks can be taken without a copy.
        self.is_ordered = bool((self.order == np.arange(len(identity))).all())

    def places(self, identity: Ints) -> tuple[Ints, Ints]:
        """The first place of each person's rows and the one after the last; equal where there are none."""
        return (
            np.searchsorted(self._ordered, identity, side="left"),
            np.searchsorted(self._ordered, identity, side="right"),
        )

    def edges(self) -> Ints:
        """Where blocks begin, never within a person."""
        wanted = block_edges(len(self.order))
        if self.is_one_each:
            return wanted
        bounds = np.append(self.begins, len(self.order))
        return np.unique(bounds[np.searchsorted(bounds, wanted)])


def _ranges(first: Ints, last: Ints) -> Ints:
    """first[0] … last[0] - 1, first[1] … last[1] - 1, … in one array."""
    counts = last - first
    return np.arange(counts.sum()) + np.repeat(first - (np.cumsum(counts) - counts), counts)


def _best_mates(probes: Vectors, gallery: Vectors, people: _People, first: Ints, last: Ints) -> Floats:
    """[Q] float64: the score with the most alike mate, -inf without any."""
    best = np.full(len(probes), -np.inf)
    for start in range(0, len(probes), PROBE_BLOCK):
        block = np.arange(start, min(start + PROBE_BLOCK, len(probes)))
        probe = np.repeat(block, last[block] - first[block])
        scores = pair_products(probes, gallery, probe, people.order[_ranges(first[block], last[block])])
        np.maximum.at(best, probe, scores)
    return best


def _rank_block(
    probes: Vectors,
    gallery: Vectors,
    people: _People,
    edges: Ints,
    first: Ints,
    last: Ints,
    limit: Vectors,
    rank: Ints,
    other_score: Floats,
) -> None:
    """Add to `rank` how many others score at least `limit`, and find the best score of others; in place."""
    for start, scores in score_blocks(probes, gallery, edges, None if people.is_ordered else people.order):
        stop = start + scores.shape[1]
        for probe in np.flatnonzero((last > first) & (first < stop) & (last > start)).tolist():
            scores[probe, first[probe] - start : last[probe] - start] = -np.inf
        highest = scores.max(axis=1)
        np.maximum(other_score, highest, out=other_score)
        passed = np.flatnonzero((highest >= limit) & (rank > 0))
        above = scores[passed] >= limit[passed, None]
        if not people.is_one_each:
            begins = people.begins[np.searchsorted(people.begins, start) : np.searchsorted(people.begins, stop)]
            above = np.logical_or.reduceat(above, begins - start, axis=1)
        # Row by row: only without an axis does numpy count at memory's speed.
        rank[passed] += np.fromiter((np.count_nonzero(row) for row in above), np.int64, len(above))
