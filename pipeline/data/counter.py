"""Counter-based randomness: numbers that follow from what they belong to, never from a generator's state.

A draw is a hash of (key, counter). The key comes from names and seeds, the counter is a stream position, so any
rank, any worker and any restart draws the same number for the same sample.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIER_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = np.uint64(0x94D049BB133111EB)
_SHIFT_30, _SHIFT_27, _SHIFT_31, _SHIFT_11 = (np.uint64(bits) for bits in (30, 27, 31, 11))


def derive_keys(count: int, *parts: str | int) -> npt.NDArray[np.uint64]:
    """Derive `count` independent 64-bit keys from the parts; lengths are hashed too, so that no two lists run together.

    Returns:
        [count] uint64.
    """
    hasher = hashlib.shake_256()
    for part in parts:
        encoded = f"{type(part).__name__}:{part}".encode()
        hasher.update(len(encoded).to_bytes(8, "little") + encoded)
    return np.frombuffer(hasher.digest(8 * count), "<u8").astype(np.uint64)


def mix64(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Hash each value: the SplitMix64 finaliser (Steele, Lea, Flood 2014), a bijection on 64 bits.

    Args:
        values: any shape, uint64; left as it is.
    """
    mixed = values + _GOLDEN
    mixed ^= mixed >> _SHIFT_30
    mixed *= _MULTIPLIER_1
    mixed ^= mixed >> _SHIFT_27
    mixed *= _MULTIPLIER_2
    mixed ^= mixed >> _SHIFT_31
    return mixed


def uniform(operation: str, seed: int, counters: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Draw one number in [0, 1) for each counter, keyed by (seed, operation).

    Args:
        operation: what the draw is for; two operations on the same sample are independent.
        counters: [B] int64, stream positions for instance.

    Returns:
        [B] float64 with 53 random bits.
    """
    first, second = derive_keys(2, "draw", operation, seed)
    hashed = mix64(mix64(counters.astype(np.uint64) ^ first) ^ second)
    return (hashed >> _SHIFT_11).astype(np.float64) * 2.0**-53
