"""`launch/train.py` with a fault put in, for tests: `python faulty_train.py FAULT … arguments of launch/train.py`.

FAULT is `NAME:RANK:STEP`; the functions below say what happens on that rank in that step. A reader fails a little later
than in its step: it runs ahead.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from typing import Any

FOREVER_S = 10_000.0


def sleep_in_forward(backend: Any) -> None:
    time.sleep(FOREVER_S)


def hold_the_interpreter(backend: Any) -> None:
    ctypes.PyDLL(None).sleep(int(FOREVER_S))  # PyDLL keeps the interpreter's lock


def be_slow(backend: Any) -> None:
    time.sleep(0.4)


def stuck_reader(reads: Any) -> None:
    time.sleep(FOREVER_S)


def dying_reader(reads: Any) -> None:
    raise MemoryError("no room for a photo")


def main() -> None:
    fault, rank, step = sys.argv.pop(1).split(":")
    if os.environ.get("RANK", "0") == rank:
        if fault.endswith("_reader"):
            _spoil_reader(globals()[fault], int(step))
        else:
            _spoil(globals()[fault], int(step), always=fault == "be_slow")
    from launch.train import app, load_modules
    from pipeline.config.errors import run_command

    run_command(app, prepare=load_modules)


def _spoil(fault: Any, step: int, always: bool) -> None:
    from pipeline.engine.ddp import DDPBackend
    from pipeline.progress import PROGRESS

    forward = DDPBackend.forward

    def spoiled(self: DDPBackend, images: Any) -> Any:
        done = PROGRESS.moment().step
        if done >= step - 1 if always else done == step - 1:
            fault(self)
        return forward(self, images)

    DDPBackend.forward = spoiled  # type: ignore[method-assign]


def _spoil_reader(fault: Any, step: int) -> None:
    from pipeline.data.reader import SampleReads
    from pipeline.progress import PROGRESS

    take = SampleReads.take

    def spoiled(self: SampleReads, slots: Any) -> Any:
        if PROGRESS.moment().step >= step - 1:
            fault(self)
        return take(self, slots)

    SampleReads.take = spoiled  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
