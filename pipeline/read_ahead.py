"""What comes next is read while the caller works on what is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Part = TypeVar("Part")
Content = TypeVar("Content")


def read_ahead(read: Callable[[Part], Content], parts: Sequence[Part]) -> Iterator[Content]:
    """Read parts in order, each by one other thread while the caller works on the one before.

    Args:
        read: what is called with each part, in order and never twice at once; what it raises is raised here.
        parts: at most one of them is read ahead.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead") as pool:
        ahead = pool.submit(read, parts[0]) if parts else None
        for part in parts[1:]:
            assert ahead is not None
            content = ahead.result()
            ahead = pool.submit(read, part)
            yield content
        if ahead is not None:
            yield ahead.result()
