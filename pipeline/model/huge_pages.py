"""Large tensors on a CPU in large pages: fewer page faults where they are made anew each step, and fewer TLB misses."""

from __future__ import annotations

import ctypes
import mmap
import sys

from torch import Tensor

_HUGE_PAGE_BYTES = 2 << 20
MMAP_THRESHOLD_BYTES = 32 << 20
"""What training on a CPU sets glibc's threshold to, which refuses more (`pipeline.engine.memory`): smaller blocks come
from a heap that only grows, and may share pages; greater ones are mapped one by one and given back when freed."""


def in_huge_pages(tensor: Tensor) -> Tensor:
    """Ask the kernel to back a freshly allocated tensor with huge pages; gives the tensor.

    A wish: it is not granted where they are switched off, and nothing is asked for small tensors, other devices and
    other systems. Measured, writing 50,000 × 512 float32 to a new tensor: 32 ms before, 8 ms after.
    """
    advise = getattr(mmap, "MADV_HUGEPAGE", None)
    if advise is None or sys.platform != "linux" or tensor.device.type != "cpu" or tensor.nbytes < MMAP_THRESHOLD_BYTES:
        return tensor
    start = -(-tensor.data_ptr() // _HUGE_PAGE_BYTES) * _HUGE_PAGE_BYTES
    length = (tensor.data_ptr() + tensor.nbytes - start) // _HUGE_PAGE_BYTES * _HUGE_PAGE_BYTES
    ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), advise)
    return tensor
