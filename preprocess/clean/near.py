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


def nearest_other(hashes: Hashes, others: Hashes, threshold: int) -> tuple[Places, Places, npt.NDArray[np.uint8]]:
    """For each hash that is within a distance of one of `others`: its place, the nearest other's, and the bits."""
    unique, first = np.unique(others, return_index=True)
    own, back = np.unique(hashes, return_inverse=True)
    both, places = np.unique(np.concatenate([own, unique]), return_inverse=True)
    i, j, bits = near_pairs(both, threshold)
    # each pair both ways, and each hash with itself: one may be on both sides
    all_places = np.arange(len(both))
    i, j = np.concatenate([i, j, all_places]), np.concatenate([j, i, all_places])
    bits = np.concatenate([bits, bits, np.zeros(len(both), np.uint8)])
    place_of_own = np.full(len(both), -1, np.int64)
    place_of_own[places[: len(own)]] = np.arange(len(own))
    place_of_other = np.full(len(both), -1, np.int64)
    place_of_other[places[len(own) :]] = first
    is_across = (place_of_own[i] >= 0) & (place_of_other[j] >= 0)
    i, j, bits = place_of_own[i[is_across]], place_of_other[j[is_across]], bits[is_across]
    best = np.lexsort((j, bits, i))
    i, j, bits = i[best], j[best], bits[best]
    is_first = np.r_[True, i[1:] != i[:-1]] if len(i) else np.empty(0, bool)
    match = np.full(len(own), -1, np.int64)
    match[i[is_first]] = np.flatnonzero(is_first)
    found = np.flatnonzero(match[back] >= 0)
    chosen = match[back[found]]
    return found, j[chosen], bits[chosen]


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
