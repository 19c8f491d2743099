"""One run at a time in an output directory.

Who finds another run there is told at once. It then waits a while, for that one may be on its way out: it may still be
saving, or it died with its node, and a file server keeps its lock until the lease ends (90 s with Linux' NFS server).
Where a person looks on, they can decide better; where nobody does, the exit code has it tried again.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline import dist
from pipeline.config.errors import InUseError

LOCK_FILE = ".lock"
WAIT_S = 120.0
WAIT_AT_A_TERMINAL_S = 5.0

logger = logging.getLogger(__name__)


@contextmanager
def exclusive(output: Path, wait_s: float | None = None) -> Iterator[None]:
    """Make the directory and hold it while the block runs; rank 0 holds the lock for all. Collective on all ranks.

    Args:
        output: the directory.
        wait_s: how long to wait for another run to leave; None: see the module's text.

    Raises:
        InUseError: another run writes here; on all ranks.
    """
    if wait_s is None:
        wait_s = WAIT_AT_A_TERMINAL_S if sys.stderr.isatty() else WAIT_S
    output.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(output / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        is_free = dist.rank() != 0 or _acquire(descriptor, output, wait_s)
        if not dist.all_ranks_agree(is_free):
            found = f"another run writes here ({_holder(descriptor)})"
            raise InUseError(output, found, "one at a time", "wait for it or stop it")
        yield
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, output: Path, wait_s: float) -> bool:
    deadline = time.monotonic() + wait_s
    is_announced = False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            if not is_announced:
                logger.warning("%s: %s writes here; waiting %.3g s for it to end", output, _holder(descriptor), wait_s)
                is_announced = True
            time.sleep(0.2)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {os.uname().nodename}".encode(), 0)
    return True


def _holder(descriptor: int) -> str:
    """What the run that holds the lock wrote about itself, or the last one before it did."""
    return os.pread(descriptor, 100, 0).decode(errors="replace").strip() or "a process"
