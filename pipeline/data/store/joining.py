"""Which ranges share a request: neighbours do, when the gap between them costs less than another round trip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.data.store.base import Range

# At 50 MB/s a gap of this size takes 5 ms: less than a round trip to any object store.
MAX_GAP_BYTES = 256 << 10
# Longer requests save nothing more, and one that fails is repeated as a whole.
MAX_REQUEST_BYTES = 8 << 20


@dataclass(frozen=True)
class JoinedRange:
    """One request for several ranges."""

    span: Range
    """From the first byte of the first to the last byte of any."""
    numbers: list[int]
    """Positions of the ranges among those given."""


def join_ranges(ranges: Sequence[Range]) -> list[JoinedRange]:
    """Join ranges of a shard that lie near each other; a range longer than a request stands alone."""
    joined: list[JoinedRange] = []
    for number in sorted(range(len(ranges)), key=lambda number: ranges[number]):
        wanted = ranges[number]
        last = joined[-1].span if joined else None
        if (
            last is not None
            and wanted.shard == last.shard
            and wanted.start - last.stop <= MAX_GAP_BYTES
            and max(wanted.stop, last.stop) - last.start <= MAX_REQUEST_BYTES
        ):
            span = Range(last.shard, last.start, max(last.stop, wanted.stop))
            joined[-1] = JoinedRange(span, [*joined[-1].numbers, number])
        else:
            joined.append(JoinedRange(wanted, [number]))
    return joined
