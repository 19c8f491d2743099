"""Pairs of 64-bit hashes that differ in few bits, without comparing all with all.

Multi-index hashing (Norouzi, Punjani, Fleet 2012, "Fast Search in Hamming Space with Multi-Index Hashing"): cut into m
chunks, two hashes within t bits agree within ⌊t / m⌋ bits in one chunk at least. So for each chunk and each pattern of
so few bits, hashes whose chunks differ by just that pattern are candidates; sorting brings them together.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, pairwise

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]

_BITS = 64
_BLOCK_PAIRS = 2**24
"""Candidates that are looked at together: bounds the memory where many hashes share a chunk."""


def near_pairs(hashes: Hashes, threshold: int) -> tuple[Places, Places, npt.NDArray[np.uint8]]:
    """All pairs of hashes within a Hamming distance.

    Args:
        hashes: [N], each once.
        threshold: bits, at most.

    Returns:
        Places i < j, [P] each, in rising order, and their distances in bits.
    """
    width = min(_BITS, max(8, int(np.log2(max(len(hashes), 2))) + 1))
    edges = np.linspace(0, _BITS, max(1, _BITS // width) + 1).astype(int).tolist()
    num_chunks = len(edges) - 1
    found: list[npt.NDArray[np.int64]] = []
    for low, high in pairwise(edges):
        chunk = (hashes >> np.uint64(low)) & np.uint64(2 ** (high - low) - 1)
        order = np.argsort(chunk, kind="stable")
        ordered = chunk[order]
        for pattern in _patterns(high - low, threshold // num_chunks):
            wanted = ordered ^ pattern
            first, last = np.searchsorted(ordered, wanted, "left"), np.searchsorted(ordered, wanted, "right")
            for left, right in _expand(first, last):
                i, j = order[left], order[right]
                is_near = (i < j) & (np.bitwise_count(hashes[i] ^ hashes[j]) <= threshold)
                found.append(np.stack([i[is_near], j[is_near]], 1))
    pairs = np.unique(np.concatenate(found), axis=0) if found else np.empty((0, 2), np.int64)
    i, j = pairs[:, 0], pairs[:, 1]
    return i, j, np.bitwise_count(hashes[i] ^ hashes[j])


def near_others(
    hashes: Hashes, others: Hashes, threshold: int, max_of_hash: int
) -> tuple[Places, Places, npt.NDArray[np.uint8]]:
    """All pairs of a hash and one of `others` within a Hamming distance.

    Args:
        hashes: [N].
        others: [M].
        threshold: bits, at most.
        max_of_hash: how many of equal `others` are paired, the first of them.

    Returns:
        Places in `hashes` and in `others`, [P] each, and distances in bits; by place, distance and other.
    """
    both, places = np.unique(np.concatenate([hashes, others]), return_inverse=True)
    own, their = places[: len(hashes)], places[len(hashes) :]
    i, j, bits = near_pairs(both, threshold)
    # each pair both ways, and each hash with itself: one may be on both sides
    all_places = np.arange(len(both))
    i, j = np.concatenate([i, j, all_places]), np.concatenate([j, i, all_places])
    bits = np.concatenate([bits, bits, np.zeros(len(both), np.uint8)])
    own_order, their_order = np.argsort(own, kind="stable"), np.argsort(their, kind="stable")
    first, last = (np.searchsorted(own[own_order], all_places, side) for side in ("left", "right"))
    their_first, their_last = (np.searchsorted(their[their_order], all_places, side) for side in ("left", "right"))
    their_last = np.minimum(their_last, their_first + max_of_hash)
    is_across = (first[i] < last[i]) & (their_first[j] < their_last[j])
    i, j, bits = i[is_across], j[is_across], bits[is_across]
    found: list[tuple[Places, Places, npt.NDArray[np.uint8]]] = [
        (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.uint8))
    ]
    for pair, of_own in _expand(first[i], last[i]):
        for within, of_their in _expand(their_first[j[pair]], their_last[j[pair]]):
            found.append((own_order[of_own[within]], their_order[of_their], bits[pair[within]]))
    place, other, distance = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.lexsort((other, distance, place))
    return place[order], other[order], distance[order]


def _patterns(width: int, num_bits: int) -> Iterator[np.uint64]:
    """All numbers of `width` bits of which at most `num_bits` are set."""
    for count in range(num_bits + 1):
        for places in combinations(range(width), count):
            yield np.uint64(sum(1 << place for place in places))


def _expand(first: Places, last: Places) -> Iterator[tuple[Places, Places]]:
    """Place k beside each place of range(first[k], last[k]), in blocks of bounded size."""
    counts = last - first
    ends = np.cumsum(counts)
    start = 0
    while start < len(counts):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + _BLOCK_PAIRS, "right")))
        part = counts[start:stop]
        left = np.repeat(np.arange(start, stop), part)
        within = np.arange(len(left)) - np.repeat(np.cumsum(part) - part, part)
        yield left, np.repeat(first[start:stop], part) + within
        start = stop
