"""No process of a run outlives the one that started it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psutil

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def leave_with_parent(parent: int) -> None:
    """Ask the kernel to send this process SIGTERM when `parent`, which started it, dies; also after an exec."""
    if sys.platform != "linux":
        return
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a handler that was inherited by a fork would be asked in vain
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before the kernel knew what to do
        os.kill(os.getpid(), signal.SIGTERM)


def leave_with_launcher() -> None:
    """Leave when the process that started this rank dies. Where there is no rank: nothing.

    Ranks live in sessions of their own: a launcher that is killed would leave them training, into the same directory as
    the run that replaces it, or waiting for one another before they have begun.
    """
    if "RANK" in os.environ:
        leave_with_parent(os.getppid())


@contextmanager
def no_process_left(patience_s: float) -> Iterator[Callable[[float], None]]:
    """While the block runs, processes whose parent dies become this one's; those still there at its end are ended.

    They are sent SIGTERM, so that they can save, and SIGKILL when they are there `patience_s` seconds later. Gives a
    function that does this at once, with a patience of its own.
    """
    before = set(_descendants())
    if sys.platform == "linux":
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)

    def end(patience_s: float) -> None:
        left = [process for process in _descendants() if process not in before]
        for process in left:
            _signal(process, signal.SIGTERM)
        _, stubborn = psutil.wait_procs(left, patience_s)
        for process in stubborn:
            _signal(process, signal.SIGKILL)

    try:
        yield end
    finally:
        end(patience_s)


def _descendants() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    with suppress(psutil.NoSuchProcess):  # it has left by itself
        process.send_signal(number)


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value})")
