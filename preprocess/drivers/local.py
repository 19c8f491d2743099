"""The work on one machine: a pool of processes that make slices, and put a shard together when its slices are there."""

from __future__ import annotations

import fcntl
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import pyarrow as pa

from pipeline.config.errors import UserError
from preprocess.crops import CropMaker, CropOptions
from preprocess.plan import Plan, ShardPlan
from preprocess.shard import ShardContext, finish_shard, num_slices, process_slice, read_commit, slice_rows
from preprocess.sources.store import PhotoStore

logger = logging.getLogger(__name__)

OnPhotos = Callable[[int], None]

_maker: CropMaker | None = None  # of this worker process; loading a detector's networks once takes long enough


def run_local(
    plan: Plan,
    photos: PhotoStore,
    out: Path,
    weights: Path | None,
    num_workers: int,
    on_photos: OnPhotos,
) -> None:
    """Make all shards that are not committed yet.

    Args:
        plan: the work.
        photos: where the photos' bytes come from.
        out: the data set.
        weights: the detector's weight file, if it needs one.
        num_workers: processes.
        on_photos: told how many photos have been dealt with since it was last told.

    Raises:
        UserError: a worker process died or lacks memory, the source is gone, or the data set cannot be written.
    """
    context = ShardContext(photos, out, plan.options, plan.hash)
    todo = [number for number in range(plan.num_shards) if read_commit(out, plan.shard(number), plan.hash) is None]
    if not todo:
        return
    with _pool(num_workers, plan.options.crop, weights) as pool:
        try:
            _run(pool, plan, todo, context, 3 * num_workers, on_photos)
        except BrokenProcessPool:
            raise UserError(
                out,
                "a worker process died (killed, or out of memory)",
                remedy="repeat the same command, it goes on where it stopped; fewer --workers need less memory",
            ) from None
        except MemoryError:
            raise UserError(
                out,
                "not enough memory for a photo",
                remedy="repeat the same command with fewer --workers, it goes on where it stopped",
            ) from None
        except OSError as error:  # photos that cannot be read are rejects or a UserError: this is about writing
            raise UserError(
                out,
                f"cannot be written ({error.strerror})",
                remedy="mend it and repeat the same command, it goes on where it stopped",
            ) from None


@contextmanager
def exclusive(out: Path) -> Iterator[None]:
    """Hold a data set's directory for one run on this machine. The lock vanishes with the process, however it ends.

    Raises:
        UserError: another run holds it.
    """
    handle = os.open(out, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(out, "another run is working on it", remedy="wait for it, or stop it") from None
        except OSError as error:  # some network file systems have no locks; two runs would only waste work
            logger.warning("%s cannot be locked (%s): start one run at a time", out, error.strerror)
        yield
    finally:
        os.close(handle)


def _run(
    pool: ProcessPoolExecutor, plan: Plan, todo: list[int], context: ShardContext, window: int, on_photos: OnPhotos
) -> None:
    """Keep `window` tasks under way: the next slices in order, and the end of each shard as soon as it can be made."""
    pending: dict[Future[None], tuple[ShardPlan, int]] = {}  # with the number of photos; 0 for a shard's end
    missing: dict[str, int] = {}
    slices = _slices(plan, todo)
    exhausted = False
    while True:
        while not exhausted and len(pending) < window:
            following = next(slices, None)
            if following is None:
                exhausted = True
                break
            shard, index = following
            missing.setdefault(shard.name, num_slices(shard))
            rows = slice_rows(shard, index)
            pending[pool.submit(_slice_task, context, shard.name, index, rows)] = (shard, len(rows))
        if not pending:
            return
        for future in wait(pending, return_when=FIRST_COMPLETED).done:
            shard, num_photos = pending.pop(future)
            future.result()
            if num_photos == 0:
                continue
            on_photos(num_photos)
            missing[shard.name] -= 1
            if missing[shard.name] == 0:
                rows = shard.rows.take(pa.array(range(len(shard.rows))))  # a copy: see slice_rows
                whole = ShardPlan(shard.name, shard.split, rows)
                pending[pool.submit(_finish_task, context, whole)] = (whole, 0)


def _slices(plan: Plan, todo: list[int]) -> Iterator[tuple[ShardPlan, int]]:
    for number in todo:
        shard = plan.shard(number)
        for index in range(num_slices(shard)):
            yield shard, index


@contextmanager
def _pool(num_workers: int, options: CropOptions, weights: Path | None) -> Iterator[ProcessPoolExecutor]:
    """Processes that end with this one: each watches a pipe that closes when the parent leaves, dies or is killed."""
    spawn = multiprocessing.get_context("spawn")
    reader, writer = spawn.Pipe(duplex=False)
    pool = ProcessPoolExecutor(num_workers, spawn, _start_worker, (reader, options, weights))
    try:
        yield pool
    except BaseException:
        writer.close()  # workers leave at once instead of finishing their slices
        pool.shutdown(wait=True, cancel_futures=True)
        raise
    finally:
        pool.shutdown(wait=True)
        writer.close()
        reader.close()


def _start_worker(parent: Connection, options: CropOptions, weights: Path | None) -> None:
    global _maker
    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    threading.Thread(target=_leave_with_parent, args=(parent,), daemon=True).start()
    cv2.setNumThreads(1)
    pa.set_cpu_count(1)
    _maker = CropMaker(options, weights)


def _leave_with_parent(parent: Connection) -> None:
    parent.poll(None)  # nothing is ever sent: this returns at the end of file
    os._exit(1)


def _slice_task(context: ShardContext, shard_name: str, index: int, rows: pa.Table) -> None:
    assert _maker is not None
    process_slice(context, shard_name, index, rows, _maker)


def _finish_task(context: ShardContext, shard: ShardPlan) -> None:
    finish_shard(context, shard)
