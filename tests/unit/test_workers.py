"""Worker processes, and signals that wait until they are asked for."""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from preprocess.workers import stop_between_tasks, wait_for_any, worker_pool

_prepared: list[int] = []


def prepare() -> None:
    _prepared.append(os.getpid())


def blocked_signals() -> tuple[int, list[int]]:
    """Of a worker: the mask of its main thread, and who prepared it."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["SigBlk"], 16), _prepared


def is_blocked(mask: int, number: int) -> bool:
    return bool(mask >> (number - 1) & 1)


def leave() -> None:
    os._exit(3)


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_signals_wait_until_they_are_asked_for(number: int, expected: type[BaseException]) -> None:
    before = signal.getsignal(number)
    reached = []

    def work() -> None:
        with stop_between_tasks() as ask:
            ask()
            signal.raise_signal(number)
            reached.append("after the signal")
            ask()
            reached.append("never")

    with pytest.raises(expected) as raised:
        work()
    assert reached == ["after the signal"]
    assert signal.getsignal(number) is before
    if expected is SystemExit:
        assert raised.value.code == 143  # type: ignore[attr-defined]


def test_the_end_asks_once_more() -> None:
    with pytest.raises(KeyboardInterrupt), stop_between_tasks():
        signal.raise_signal(signal.SIGINT)


def test_a_signal_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_between_tasks() as ask:
            signal.raise_signal(signal.SIGINT)
            ask()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_failure_is_not_hidden() -> None:
    def fail() -> None:
        with stop_between_tasks():
            signal.raise_signal(signal.SIGINT)
            raise ValueError("of the work")

    with pytest.raises(ValueError, match="of the work"):
        fail()


def test_a_failure_that_a_stop_may_have_caused_gives_way_to_it() -> None:
    def fail(is_stopped: bool) -> None:
        with stop_between_tasks(BrokenProcessPool):
            if is_stopped:
                signal.raise_signal(signal.SIGINT)
            raise BrokenProcessPool

    with pytest.raises(KeyboardInterrupt):
        fail(is_stopped=True)
    with pytest.raises(BrokenProcessPool):
        fail(is_stopped=False)


def test_waiting_for_what_never_comes_can_be_stopped() -> None:
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt), stop_between_tasks() as ask:
        wait_for_any([Future[None]()], ask)
    timer.join()


def test_waiting_gives_all_that_are_done() -> None:
    done, other, failed = Future[int](), Future[int](), Future[int]()
    done.set_result(1)
    failed.set_exception(ValueError())
    assert wait_for_any([done, other, failed], lambda: None) == {done, failed}


def test_workers_never_see_ctrl_c() -> None:
    with worker_pool(2, prepare) as pool:
        mask, prepared = pool.submit(blocked_signals).result()
    assert is_blocked(mask, signal.SIGINT)
    assert not is_blocked(mask, signal.SIGTERM)
    assert len(prepared) == 1
    assert prepared != [os.getpid()]
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_workers_do_not_finish_what_nobody_waits_for() -> None:
    def fail() -> None:
        with worker_pool(2) as pool:
            pool.submit(blocked_signals).result()
            for _ in range(5):
                pool.submit(time.sleep, 60)
            raise ValueError("of the parent")

    began_s = time.monotonic()
    with pytest.raises(ValueError, match="of the parent"):
        fail()
    assert time.monotonic() - began_s < 50


def test_a_dead_worker_is_told() -> None:
    with pytest.raises(BrokenProcessPool), worker_pool(1) as pool:
        pool.submit(leave).result()
