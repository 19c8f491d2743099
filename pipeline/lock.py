"""One process at a time in an output directory, or at a file.

Who finds another one there is told at once. It then waits a while, for that one may be on its way out: it may still be
saving, or it died with its node, and a file server keeps its lock until the lease ends (90 s with Linux' NFS server).
Where a person looks on, they can decide better; where nobody does, the exit code has it tried again.
"""

from __future__ import annotations

import errno
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
    output.mkdir(parents=True, exist_ok=True)
    with _holding(output / LOCK_FILE, output, wait_s):
        yield


@contextmanager
def exclusive_file(output: Path, wait_s: float | None = None) -> Iterator[None]:
    """As `exclusive`, for a file that is to be written: its lock stands beside it, `OUTPUT.lock`, and goes at the end.

    Raises:
        InUseError: another process is about to write it; on all ranks.
    """
    lock = lock_beside(output)
    lock.parent.mkdir(parents=True, exist_ok=True)
    with _holding(lock, output, wait_s):
        try:
            yield
        finally:
            if dist.rank() == 0:
                lock.unlink(missing_ok=True)  # who waits for it finds out, see `_acquire`


def lock_beside(output: Path) -> Path:
    """Where the lock of a file stands."""
    return output.absolute().with_name(output.name + LOCK_FILE)


@contextmanager
def _holding(lock: Path, output: Path, wait_s: float | None) -> Iterator[None]:
    if wait_s is None:
        wait_s = WAIT_AT_A_TERMINAL_S if sys.stderr.isatty() else WAIT_S
    descriptor = _acquire(lock, output, wait_s) if dist.rank() == 0 else None
    try:
        if not dist.all_ranks_agree(dist.rank() != 0 or descriptor is not None):
            found = f"another run writes here ({_holder(lock)})"
            raise InUseError(output, found, "one at a time", "wait for it or stop it")
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _acquire(lock: Path, output: Path, wait_s: float) -> int | None:
    """The descriptor that holds the lock; None where another process holds it all the time."""
    deadline = time.monotonic() + wait_s
    is_announced = False
    while (descriptor := _try_to_acquire(lock)) is None:
        if time.monotonic() >= deadline:
            return None
        if not is_announced:
            logger.warning("%s: %s writes here; waiting %.3g s for it to end", output, _holder(lock), wait_s)
            is_announced = True
        time.sleep(0.2)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {os.uname().nodename}".encode(), 0)
    return descriptor


def _try_to_acquire(lock: Path) -> int | None:
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # a lock on a file that was deleted since it was opened keeps nobody out
        if os.path.samestat(os.fstat(descriptor), os.stat(lock)):
            return descriptor
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.ENOENT, errno.ESTALE):
            os.close(descriptor)
            raise
    os.close(descriptor)
    return None


def _holder(lock: Path) -> str:
    """What the run that holds the lock wrote about itself, or the last one before it did."""
    try:
        return lock.read_text(errors="replace")[:100].strip() or "a process"
    except OSError:
        return "a process"
