"""The work on one machine: a pool of processes that make slices, and put a shard together when its slices are there."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

from pipeline.config.errors import InUseError, TemporaryError
from preprocess.drivers.schedule import OnPhotos, run_tasks, unfinished
from preprocess.plan import Plan
from preprocess.shard import ShardContext
from preprocess.sources.store import PhotoStore
from preprocess.storage import GOES_ON, storage_error
from preprocess.workers import stop_between_tasks, worker_pool

logger = logging.getLogger(__name__)


def run_local(
    plan: Plan,
    photos: PhotoStore,
    out: Path,
    weights: Path | None,
    num_workers: int,
    on_photos: OnPhotos,
    numbers: Iterable[int] | None = None,
) -> None:
    """Make the shards that are not committed yet.

    Args:
        plan: the work.
        photos: where the photos' bytes come from.
        out: the data set.
        weights: the detector's weight file, if it needs one.
        num_workers: processes.
        on_photos: see there.
        numbers: of the shards to make; None for all.

    Raises:
        TemporaryError: a worker process died or lacks memory, or storage fails.
        UserError: the source is gone, or the data set cannot be written.
    """
    context = ShardContext(photos, out, plan.options, plan.hash)
    todo = unfinished(plan, out, numbers)
    if not todo:
        return
    with worker_pool(num_workers) as pool:
        try:
            with stop_between_tasks(BrokenProcessPool) as ask:
                run_tasks(pool, plan, todo, context, weights, 3 * num_workers, on_photos, ask)
        except BrokenProcessPool:
            raise TemporaryError(
                out,
                "a worker process died (killed, or out of memory)",
                remedy="repeat the same command, it goes on where it stopped; fewer --workers need less memory",
            ) from None
        except MemoryError:
            raise TemporaryError(
                out,
                "not enough memory for a photo",
                remedy="repeat the same command with fewer --workers, it goes on where it stopped",
            ) from None
        except OSError as error:  # photos that cannot be read are rejects or a UserError: this is about writing
            raise storage_error(out, "cannot be written", error, remedy=GOES_ON) from None


@contextmanager
def exclusive(out: Path) -> Iterator[None]:
    """Hold a data set's directory for one run on this machine. The lock vanishes with the process, however it ends.

    Raises:
        InUseError: another run holds it.
    """
    handle = os.open(out, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InUseError(out, "another run is working on it", remedy="wait for it, or stop it") from None
        except OSError as error:  # some network file systems have no locks; two runs would only waste work
            logger.warning("%s cannot be locked (%s): start one run at a time", out, error.strerror)
        yield
    finally:
        os.close(handle)
