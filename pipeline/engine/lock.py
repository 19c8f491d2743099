"""One run at a time in an output directory."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline import dist
from pipeline.config.errors import UserError

LOCK_FILE = ".lock"
WAIT_S = 60.0


@contextmanager
def exclusive(output: Path, wait_s: float = WAIT_S) -> Iterator[None]:
    """Make the directory and hold it while the block runs; rank 0 holds the lock for all. Collective on all ranks.

    A run that was told to leave may still be saving, so this waits a while before it gives up.

    Raises:
        UserError: another run writes here; on all ranks.
    """
    output.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(output / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        is_free = dist.rank() != 0 or _acquire(descriptor, wait_s)
        if not dist.all_ranks_agree(is_free):
            holder = os.pread(descriptor, 100, 0).decode(errors="replace").strip()
            raise UserError(output, f"another run writes here ({holder})", "one at a time", "wait for it or stop it")
        yield
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, wait_s: float) -> bool:
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.2)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {os.uname().nodename}".encode(), 0)
    return True
