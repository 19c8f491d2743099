"""A benchmark's own ranks: processes of this machine that meet over gloo."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch.multiprocessing as multiprocessing
from ports import free_port


def run_on_ranks(fn: Callable[..., None], num_ranks: int, *arguments: object) -> Any:
    """Call `fn(results, *arguments)` on so many processes with RANK and so on in their environment.

    Args:
        fn: of a module's top level; one rank puts its findings into `results`, a queue: 64 KB at most.
        num_ranks: how many.
        arguments: what else it gets.

    Returns:
        What was put there.

    Raises:
        Exception: of a rank that failed; the others are ended.
    """
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(num_ranks)}
    results = multiprocessing.get_context("spawn").SimpleQueue()
    multiprocessing.spawn(_on_rank, (meeting, fn, results, arguments), num_ranks)
    return results.get()


def _on_rank(
    rank: int, meeting: dict[str, str], fn: Callable[..., None], results: Any, arguments: tuple[object, ...]
) -> None:
    os.environ |= meeting | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    fn(results, *arguments)
