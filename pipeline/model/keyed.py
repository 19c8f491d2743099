"""Random numbers on the device, keyed by what they belong to: never by a rank or a generator's state."""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9
_MULTIPLIER_2 = 0x94D049BB133111EB


def keyed_uniform(seed: int, step: int, *counters: Tensor) -> Tensor:
    """One number in [0, 1) for each element, a function of (seed, step, counters at that element) alone.

    Each counter in turn is hashed into the key by the SplitMix64 finaliser (Steele, Lea, Flood 2014), so (a, b) and
    (b, a) draw differently.

    Args:
        seed: tells apart operations and runs.
        step: optimizer updates done so far.
        counters: int64, of shapes that broadcast, sample ids for instance.

    Returns:
        float64 with 53 random bits, of the broadcast shape.
    """
    key = torch.tensor([_signed(seed), _signed(step)], device=counters[0].device)
    state = _mix(_mix(key[0]) ^ key[1])
    for counter in counters:
        state = _mix(state ^ counter)
    return _shifted(_mix(state), 11).double() * 2.0**-53


def _mix(values: Tensor) -> Tensor:
    values = values + _signed(_GOLDEN)
    values = (values ^ _shifted(values, 30)) * _signed(_MULTIPLIER_1)
    values = (values ^ _shifted(values, 27)) * _signed(_MULTIPLIER_2)
    return values ^ _shifted(values, 31)


def _shifted(values: Tensor, bits: int) -> Tensor:
    """Shift right without the sign: torch's shift of int64 drags it along."""
    return (values >> bits) & (_MASK >> bits)


def _signed(value: int) -> int:
    """The int64 of the same 64 bits."""
    value &= _MASK
    return value - 2**64 if value >= 2**63 else value
