"""Search among many embeddings: matrix products in blocks, never a full matrix of scores.

A score is the cosine. Products are made in float32, whose rounding could swap two scores that are all but equal. What
comes of them is therefore settled in float64, so that results do not depend on blocks, threads or library.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Literal

import numpy as np
import numpy.typing as npt

from pipeline.config.errors import UserError
from pipeline.evaluate.verification import Floats, Ints

Vectors = npt.NDArray[np.float32]
"""[N, D], L2-normalised rows."""

PROBE_BLOCK = 1024
GALLERY_BLOCK = 4096
"""A block of scores takes 16 MiB; its product is long enough that what else is done with it hardly counts."""

_PIECE = 512
"""Columns looked through at once. Most pieces soon hold nothing better than what was found, and cost no more than their
maximum; the smaller they are, the fewer scores are partitioned for the one that is better."""

_SPARE = 8
"""Candidates kept beyond those asked for, so that the float64 scores can put them in another order."""
_PAIR_BLOCK = 4096
_NORM_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Neighbours:
    """The gallery rows most like each probe, best first; of equal scores the lower row comes first."""

    rows: Ints
    """[Q, k]"""
    scores: Floats
    """[Q, k] cosines, computed in float64."""
    engine: Literal["faiss", "blocks"]
    """What found the candidates."""


def require_unit(vectors: npt.NDArray[np.floating], name: str) -> Vectors:
    """The vectors as contiguous float32; no copy where they are already.

    Raises:
        UserError: not a matrix, or rows that are not finite or not of length 1.
    """
    if vectors.ndim != 2:
        raise UserError(name, f"an array of {vectors.ndim} dimensions", "embeddings as [N, D]")
    checked = np.ascontiguousarray(vectors, np.float32)
    for start in range(0, len(checked), _PAIR_BLOCK):
        part = checked[start : start + _PAIR_BLOCK]
        # A NaN fails the comparison, too.
        bad = ~(np.abs(np.einsum("nd,nd->n", part, part) - 1.0) < _NORM_TOLERANCE)
        if bad.any():
            found = f"embedding {start + int(np.argmax(bad))} is not finite or not of length 1"
            raise UserError(name, found, "L2-normalised rows")
    return checked


def score_rounding(dimension: int) -> float:
    """How far apart two float32 scores must be for their order to mean something.

    sqrt(D) · 2^-23, the likely error of a D-term product of unit vectors (Higham & Mary 2019).
    """
    return float(np.sqrt(dimension) * 2.0**-23)


def pair_products(left_vectors: Vectors, right_vectors: Vectors, left: Ints, right: Ints) -> Floats:
    """[P] float64 scores of the rows `left[i]` and `right[i]`, in blocks; the same bits wherever a pair stands."""
    scores = np.empty(len(left), np.float64)
    for start in range(0, len(left), _PAIR_BLOCK):
        part = slice(start, start + _PAIR_BLOCK)
        a, b = left_vectors[left[part]].astype(np.float64), right_vectors[right[part]].astype(np.float64)
        scores[part] = np.einsum("nd,nd->n", a, b)
    return scores


def score_blocks(
    probes: Vectors, gallery: Vectors, edges: Ints, order: Ints | None = None
) -> Iterator[tuple[int, Vectors]]:
    """Scores of a block of probes with the gallery, block by block.

    Args:
        probes: [Q, D], at most `PROBE_BLOCK` rows.
        gallery: [G, D]
        edges: where blocks begin, and G; see `block_edges`.
        order: take the gallery's rows in this order; None as they stand, without a copy.

    Yields:
        The block's first place in the order, and [Q, block] scores in a buffer that the next block overwrites.
    """
    buffer = np.empty(len(probes) * int(np.max(np.diff(edges), initial=0)), np.float32)
    for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        part = gallery[start:stop] if order is None else gallery[order[start:stop]]
        scores = buffer[: len(probes) * (stop - start)].reshape(len(probes), stop - start)
        yield start, np.matmul(probes, part.T, out=scores)


def block_edges(num_gallery: int) -> Ints:
    """Where blocks of `GALLERY_BLOCK` begin, and the end."""
    return np.unique(np.append(np.arange(0, num_gallery, GALLERY_BLOCK), num_gallery))


def nearest(
    probes: npt.NDArray[np.floating],
    gallery: npt.NDArray[np.floating],
    k: int,
    *,
    engine: Literal["faiss", "blocks"] | None = None,
) -> Neighbours:
    """The k gallery rows most like each probe. Both engines give the same rows and scores.

    Memory: both matrices as float32, and some 100 MiB.

    Args:
        probes, gallery: [Q, D] and [G, D], L2-normalised.
        k: how many; all of a smaller gallery.
        engine: what finds the candidates; None takes faiss (its exact inner-product index) where it is installed.

    Raises:
        UserError: embeddings that are not finite, not of length 1 or of two lengths; or faiss, where it is missing.
    """
    probes, gallery = require_unit(probes, "probes"), require_unit(gallery, "gallery")
    if probes.shape[1] != gallery.shape[1]:
        raise UserError("gallery", f"embeddings of {gallery.shape[1]}", f"{probes.shape[1]}, as the probes'")
    has_faiss = find_spec("faiss") is not None
    if engine == "faiss" and not has_faiss:
        raise UserError("faiss", "not installed", remedy="install faiss-cpu, or search in blocks")
    engine = engine or ("faiss" if has_faiss else "blocks")
    k = min(k, len(gallery))
    rows, scores = np.empty((len(probes), k), np.int64), np.empty((len(probes), k), np.float64)
    if k == 0:
        return Neighbours(rows, scores, engine)
    num_candidates = min(k + _SPARE, len(gallery))
    find = _FaissCandidates(gallery) if engine == "faiss" else _BlockCandidates(gallery)
    for start in range(0, len(probes), PROBE_BLOCK):
        block = probes[start : start + PROBE_BLOCK]
        found, found_scores = find(block, num_candidates)
        rows[start : start + len(block)], scores[start : start + len(block)] = _settle(
            block, gallery, found, found_scores, k
        )
    return Neighbours(rows, scores, engine)


class _BlockCandidates:
    """The best float32 scores by matrix products in blocks."""

    def __init__(self, gallery: Vectors) -> None:
        self._gallery, self._edges = gallery, block_edges(len(gallery))

    def __call__(self, probes: Vectors, count: int) -> tuple[Ints, Vectors]:
        rows = np.zeros((len(probes), count), np.int64)
        best = np.full((len(probes), count), -np.inf, np.float32)
        for start, scores in score_blocks(probes, self._gallery, self._edges):
            for column in range(0, scores.shape[1], _PIECE):
                self._keep_better(scores[:, column : column + _PIECE], start + column, rows, best)
        return rows, best

    @staticmethod
    def _keep_better(scores: Vectors, first_row: int, rows: Ints, best: Vectors) -> None:
        """Put what is better than the worst of `best` in its place."""
        hit = np.flatnonzero(scores.max(axis=1) > best.min(axis=1))
        if len(hit) == 0:
            return
        count = best.shape[1]
        width = min(count, scores.shape[1])
        new = scores[hit]
        columns = np.argpartition(new, new.shape[1] - width, axis=1)[:, -width:]
        all_scores = np.hstack((best[hit], np.take_along_axis(new, columns, axis=1)))
        all_rows = np.hstack((rows[hit], columns + first_row))
        kept = np.argpartition(all_scores, width, axis=1)[:, -count:]
        best[hit] = np.take_along_axis(all_scores, kept, axis=1)
        rows[hit] = np.take_along_axis(all_rows, kept, axis=1)


class _FaissCandidates:
    """The same from faiss."""

    def __init__(self, gallery: Vectors) -> None:
        self._index = import_module("faiss").IndexFlatIP(gallery.shape[1])
        self._index.add(gallery)

    def __call__(self, probes: Vectors, count: int) -> tuple[Ints, Vectors]:
        scores, rows = self._index.search(probes, count)
        return rows, scores


def _settle(probes: Vectors, gallery: Vectors, rows: Ints, scores: Vectors, k: int) -> tuple[Ints, Floats]:
    """The best k of the candidates by float64 scores; where rows outside them might belong there, of all rows."""
    num_candidates = rows.shape[1]
    left = np.repeat(np.arange(len(probes)), num_candidates)
    exact = pair_products(probes, gallery, left, rows.ravel()).reshape(rows.shape)
    order = np.lexsort((rows, -exact), axis=-1)[:, :k]
    best_rows, best = np.take_along_axis(rows, order, axis=1), np.take_along_axis(exact, order, axis=1)
    if num_candidates < len(gallery):
        outside = scores.min(axis=1) + score_rounding(gallery.shape[1])
        for probe in np.flatnonzero(best[:, -1] <= outside).tolist():
            everything = np.arange(len(gallery))
            all_scores = pair_products(probes, gallery, np.full(len(gallery), probe), everything)
            first = np.lexsort((everything, -all_scores))[:k]
            best_rows[probe], best[probe] = first, all_scores[first]
    return best_rows, best
