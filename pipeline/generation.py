"""Agreement of freshly started ranks on a name that no group before them had.

A launcher that restarts ranks may keep the key-value store in which process groups leave their addresses; `torchrun`
does. A new rank would then find addresses of ranks that are dead, and fail or not as chance has it. Under a name of its
own a group sees only its own keys. The number of restarts is no such name: a change of members does not count as one.
"""

from __future__ import annotations

import time
import uuid

import torch.distributed as c10d

TIMEOUT_S = 1800.0
_POLL_S = 0.01


def agree_on_generation(store: c10d.Store, rank: int, world_size: int, timeout_s: float = TIMEOUT_S) -> str:
    """Give the same new name to all ranks that are alive, whatever earlier ones left in the store. Collective.

    Each rank asks with a word that was never used before, so that only an answer to just this question counts; rank 0
    gives all of them the name, and waits until each has said that it knows it.

    Raises:
        TimeoutError: a rank did not come.
    """
    deadline = time.monotonic() + timeout_s
    store = c10d.PrefixStore("generation", store)
    if rank == 0:
        return _lead(store, world_size, deadline)
    question = uuid.uuid4().hex
    store.set(f"question/{rank}", question)
    while True:
        answered, _, name = _read(store, f"answer/{rank}").partition(" ")
        if answered == question:
            store.set(f"known/{rank}", name)
            return name
        _pause(deadline, "rank 0 did not come")


def _lead(store: c10d.Store, world_size: int, deadline: float) -> str:
    name = uuid.uuid4().hex
    missing = set(range(1, world_size))
    answered: dict[int, str] = {}
    while True:
        for rank in sorted(missing):
            question = _read(store, f"question/{rank}")
            if question and question != answered.get(rank):  # a dead rank's first, perhaps, then the living one's
                store.set(f"answer/{rank}", f"{question} {name}")
                answered[rank] = question
            if _read(store, f"known/{rank}") == name:
                missing.remove(rank)
        if not missing:
            return name
        _pause(deadline, f"ranks {', '.join(map(str, sorted(missing)))} did not come")


def _read(store: c10d.Store, key: str) -> str:
    return store.get(key).decode() if store.check([key]) else ""


def _pause(deadline: float, what: str) -> None:
    if time.monotonic() > deadline:
        raise TimeoutError(what)
    time.sleep(_POLL_S)
