"""Keep glibc from giving a step's memory back to the kernel, only to fault it in again in the next step."""

from __future__ import annotations

import ctypes
import sys

from pipeline.model.huge_pages import MMAP_THRESHOLD_BYTES

# from <malloc.h>
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_GREATEST_INT = 2**31 - 1


def keep_freed_memory() -> None:
    """Let the allocator reuse freed blocks instead of unmapping them; for training on a CPU.

    Measured, an IResNet-18 step at 64 px, quarter width, batch 64, one core: 166 photos/s before, 224 after; the time
    in the kernel falls from 0.6 s to 0.06 s in 3 s. The process keeps its largest footprint, which a training run
    reaches in its first step anyway. Does nothing without glibc.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _GREATEST_INT)
