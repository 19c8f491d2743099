"""Identification among the people of a data set's split: who is enrolled, who searches, and the figures."""

from __future__ import annotations

import numpy as np

from pipeline.config.errors import UserError
from pipeline.evaluate import identification, result
from pipeline.evaluate.embed import Embeddings
from pipeline.evaluate.intervals import bootstrap
from pipeline.evaluate.search import Vectors
from pipeline.evaluate.verification import Bools, Ints, least_different_pairs

FPIR_TARGETS = {"1e-1": 1e-1, "1e-2": 1e-2, "1e-3": 1e-3}
RANKS = (1, 5, 10)

_CMC_RANKS = 50
_PROTOCOL = (
    "each person enrolled with the first photo, all others searched; "
    "open set: half of the people enrolled, the photos of the other half searched, too"
)


def identify(found: Embeddings, where: object, seed: int = 0) -> result.Identification:
    """Closed-set and open-set identification of people by their photos.

    Everybody's first photo (by number) is enrolled and all other photos are probes. For the open set, half of the
    people, drawn by `seed`, are enrolled; the other photos of these are the probes with mates, and all photos of the
    rest the ones without.

    Args:
        found: embeddings of the photos of the people.
        where: what to name in messages.
        seed: of the half that is enrolled.

    Raises:
        UserError: fewer than two people, or nobody has two photos.
    """
    order = sorted(range(len(found.photos)), key=lambda row: found.photos[row])
    names = [found.photos[row].identity for row in order]
    people, first, person = np.unique(names, return_index=True, return_inverse=True)
    vectors = found.vectors[order].astype(np.float32)
    is_first = np.zeros(len(order), bool)
    is_first[first] = True
    if len(people) < 2 or is_first.all():
        raise UserError(where, f"{len(order)} photos of {len(people)} people", "two people, and two photos of somebody")
    closed = identification.enrolled_ranks(vectors[~is_first], person[~is_first], vectors[is_first], person[is_first])
    up_to = min(_CMC_RANKS, len(people))
    # RandomState: its stream is frozen, so the same seed enrols the same people with any numpy version.
    enrolled = np.zeros(len(people), bool)
    enrolled[np.random.RandomState(seed).permutation(len(people))[: (len(people) + 1) // 2]] = True
    return result.Identification(
        protocol=_PROTOCOL,
        num_gallery=len(people),
        num_probes=int(np.count_nonzero(~is_first)),
        num_missing=len(found.missing),
        rank={str(k): identification.rank_rate(closed, k) for k in RANKS},
        rank_intervals=_rank_intervals(closed, person[~is_first]),
        cmc=identification.cumulative_match(closed, up_to).tolist(),
        open_set=_open_set(vectors, person, is_first, enrolled[person]),
    )


def _rank_intervals(ranks: identification.Ranks, person: Ints) -> dict[str, result.Bounds | None]:
    """Over the people who search; who is enrolled stays."""
    found = bootstrap(
        lambda weights: {str(k): float(np.average(ranks.rank <= k, weights=weights)) for k in RANKS}, person, person
    )
    return {k: None if one is None else result.Bounds(low=one.low, high=one.high) for k, one in found.items()}


def _open_set(vectors: Vectors, person: Ints, is_first: Bools, enrolled: Bools) -> result.OpenSet:
    gallery, probes = is_first & enrolled, ~(is_first & enrolled)
    ranks = identification.enrolled_ranks(vectors[probes], person[probes], vectors[gallery], person[gallery])
    num_mated = int(np.count_nonzero(ranks.is_mated))
    points = {}
    for name, fpir in FPIR_TARGETS.items():
        point = identification.open_set(ranks, fpir) if num_mated else None
        needed = least_different_pairs(fpir)
        points[name] = (
            result.TpirAtFpir(tpir=None, fpir=None, threshold=None, num_unmated_needed=needed)
            if point is None
            else result.TpirAtFpir(
                tpir=point.tpir, fpir=point.fpir, threshold=point.threshold, num_unmated_needed=needed
            )
        )
    return result.OpenSet(
        num_gallery=int(np.count_nonzero(gallery)),
        num_mated=num_mated,
        num_unmated=int(np.count_nonzero(probes)) - num_mated,
        tpir_at_fpir=points,
    )
