"""How the ranks of one start find each other, and nobody else."""

from __future__ import annotations

import time
import uuid

import torch.distributed as c10d

_POLL_S = 0.01


def meet(store: c10d.Store, rank: int, world_size: int, timeout_s: float = 600.0) -> str:
    """Wait until all ranks of this start are here; gives a name that no other start has. Collective on all ranks.

    torchrun keeps one store for all restarts, and process groups look for addresses under the same keys each time: a
    rank that starts quicker than another would read where that one listened before it was killed. So rank 0 asks under
    a name of its own, and tells each process that has answered to this name to go on.

    Raises:
        TimeoutError: not all ranks came.
    """
    own, deadline = uuid.uuid4().hex, time.monotonic() + timeout_s
    if rank == 0:
        store.set("start", own)
        missing = set(range(1, world_size))
        while missing:
            for other in [other for other in missing if store.check([f"here/{own}/{other}"])]:
                store.set(f"go/{own}/{store.get(f'here/{own}/{other}').decode()}", "")
                missing.remove(other)
            _wait(deadline, f"ranks {sorted(missing)} did not come")
        return own
    asked = ""
    while True:
        newest = store.get("start").decode() if store.check(["start"]) else ""
        if newest != asked:
            asked = newest
            store.set(f"here/{asked}/{rank}", own)
        if asked and store.check([f"go/{asked}/{own}"]):
            return asked
        _wait(deadline, f"rank 0 did not tell rank {rank} to go on")


def _wait(deadline: float, problem: str) -> None:
    if time.monotonic() > deadline:
        raise TimeoutError(f"{problem} in time")
    time.sleep(_POLL_S)
