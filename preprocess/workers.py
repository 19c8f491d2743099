"""Worker processes, and how work that is handed out to them is stopped.

A KeyboardInterrupt is raised wherever the main thread happens to be. Inside `concurrent.futures.wait` it may leave a
future's lock taken, for which the pool's own thread then waits for ever; and a terminal sends Ctrl-C to the workers,
too, which may still be importing. So signals wait until the main thread asks for them, and workers never see Ctrl-C.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, TypeVar

Result = TypeVar("Result")

_LISTEN_S = 0.2


@contextmanager
def stop_between_tasks(*consequences: type[Exception]) -> Iterator[Callable[[], None]]:
    """Let SIGINT and SIGTERM wait until they are asked for; one that is ignored stays so. For the main thread.

    Gives the function that asks. It raises KeyboardInterrupt after SIGINT, and SystemExit with code 143 after SIGTERM;
    the end of the context asks once more, and so does one of the `consequences`, exceptions that a stop may have:
    whoever stops a whole group of processes may hit a worker first.
    """
    received: list[int] = []

    def ask() -> None:
        if received:
            raise KeyboardInterrupt if received[0] == signal.SIGINT else SystemExit(128 + received[0])

    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    heard = [number for number, handler in previous.items() if handler is not signal.SIG_IGN]
    for number in heard:
        signal.signal(number, lambda number, frame: received.append(number))
    try:
        yield ask
    except consequences:
        ask()
        raise
    finally:
        for number in heard:
            signal.signal(number, previous[number])
    ask()


def wait_for_any(futures: Collection[Future[Result]], ask: Callable[[], None]) -> set[Future[Result]]:
    """Those that are done, at least one. `ask` is called now and then, and may raise."""
    while True:
        ask()
        done = wait(futures, timeout=_LISTEN_S, return_when=FIRST_COMPLETED).done
        if done:
            return done


class WorkerPool:
    """What `worker_pool` gives."""

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self._pool = pool

    def submit(self, task: Callable[..., Result], /, *arguments: Any) -> Future[Result]:
        """Run `task(*arguments)` in one of the processes."""
        # A process that is started here is born with SIGINT blocked, and keeps it so.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return self._pool.submit(task, *arguments)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def worker_pool(num_workers: int, prepare: Callable[[], None] | None = None) -> Iterator[WorkerPool]:
    """Processes that end with this one: each watches a pipe that closes when the parent leaves, dies or is killed.

    Args:
        num_workers: processes, started when there is work for them. Not forked: a child could inherit a lock that
            another thread holds.
        prepare: called first in each of them; a function of a module.
    """
    spawn = multiprocessing.get_context("spawn")
    reader, writer = spawn.Pipe(duplex=False)
    pool = ProcessPoolExecutor(num_workers, spawn, _start_worker, (reader, prepare))
    try:
        yield WorkerPool(pool)
    except BaseException:
        writer.close()  # workers leave at once instead of finishing their tasks
        pool.shutdown(wait=True, cancel_futures=True)
        raise
    finally:
        pool.shutdown(wait=True)
        writer.close()
        reader.close()


def _start_worker(parent: Connection, prepare: Callable[[], None] | None) -> None:
    threading.Thread(target=_leave_with_parent, args=(parent,), daemon=True).start()
    if prepare is not None:
        prepare()


def _leave_with_parent(parent: Connection) -> None:
    parent.poll(None)  # nothing is ever sent: this returns at the end of file
    os._exit(1)
