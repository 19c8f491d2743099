"""Runs a function on several ranks, as torchrun would, from within a test.

Processes are forked from a server that has imported torch once, so that a launch costs a fraction of a second.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import time
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from typing import Any

import torch
import torch.distributed as c10d

from pipeline import dist

PRELOADED = [
    "pipeline.checkpoint",
    "pipeline.engine.head_optim",
    "pipeline.engine.trainer",
    "pipeline.model.partial_fc",
    "torch._dynamo",  # an optimizer imports it at its first step
    "torch.distributed.tensor",
    "torch.distributed.checkpoint",
    "pytest",
    "hypothesis",
]
"""What test modules import at their top; whatever is not here is imported anew by every rank."""


class RankFailure(AssertionError):
    """A rank raised, died or was late. The message has the rank and its traceback, `error` what it raised."""

    def __init__(self, message: str, error: BaseException | None = None) -> None:
        super().__init__(message)
        self.error = error


def forking_context() -> ForkServerContext:
    """Starts processes that have loaded `PRELOADED`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def rank_environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    """What torchrun tells a rank on this machine; the store is the caller's, as torchrun's lives in its agent."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }


def run_ranks(fn: Callable[..., Any], world_size: int, *args: Any, timeout_s: float = 60) -> list[Any]:
    """Call `fn(*args)` on `world_size` gloo ranks and give what they returned, in order of ranks.

    Around it each rank calls `dist.initialise("cpu")` and `dist.shutdown()`, with one thread and warnings as errors.

    Args:
        fn: a function at a module's top level; it, the arguments and the results must pickle.

    Raises:
        RankFailure: see there; all ranks are killed then.
    """
    context = forking_context()
    # port 0: the system chooses a free one, and the ranks are told which
    store = c10d.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    deadline = time.monotonic() + timeout_s
    processes, connections = [], []
    try:
        for rank in range(world_size):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(
                target=_rank_main, args=(theirs, rank, world_size, store.port, fn, args), daemon=True
            )
            process.start()
            theirs.close()
            processes.append(process)
            connections.append(ours)
        results = _collect(connections, deadline)
        for rank, process in enumerate(processes):
            process.join(max(0.0, deadline - time.monotonic()))
            if process.exitcode != 0:
                raise RankFailure(f"rank {rank} of {world_size} returned, but ended with exit code {process.exitcode}")
        return results
    finally:
        for process in processes:
            process.kill()
            process.join()
        for connection in connections:
            connection.close()


def _collect(connections: list[Connection], deadline: float) -> list[Any]:
    results: list[Any] = [None] * len(connections)
    pending = set(range(len(connections)))
    while pending:
        ready = wait([connections[rank] for rank in pending], timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            raise RankFailure(f"no result in time from ranks {sorted(pending)} of {len(connections)}")
        for rank in sorted(pending):
            if connections[rank] not in ready:
                continue
            try:
                result, error, trace = pickle.loads(connections[rank].recv_bytes())
            except EOFError:
                raise RankFailure(f"rank {rank} of {len(connections)} died without a result") from None
            if trace is not None:
                raise RankFailure(f"rank {rank} of {len(connections)} failed:\n{trace}", error)
            results[rank] = result
            pending.remove(rank)
    return results


def _rank_main(
    connection: Connection, rank: int, world_size: int, port: int, fn: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    os.environ |= rank_environment(rank, world_size, port)
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    try:
        dist.initialise("cpu")
        try:
            result = fn(*args)
        finally:
            dist.shutdown()
        message = pickle.dumps((result, None, None))
    except BaseException as error:
        trace, portable = traceback.format_exc(), None
        with contextlib.suppress(Exception):
            portable = pickle.loads(pickle.dumps(error))
        message = pickle.dumps((None, portable, trace))
    connection.send_bytes(message)
