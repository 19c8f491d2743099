"""Memory of large gradients on a CPU, used again in the next step instead of given back to the kernel and faulted in.

glibc maps large blocks one by one (`MMAP_THRESHOLD_BYTES`) and unmaps them when they are freed. Activations come and go
in many sizes, and a heap that never gave them back would grow by a third (docs/performance.md); class centres have one
gradient of one size, which is there whenever a step's memory is at its peak. So an optimizer does not free it: see
`discard_gradient`. On a GPU torch's own allocator does the same for all blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from pipeline.model.huge_pages import MMAP_THRESHOLD_BYTES, in_huge_pages

# parameter to what was its gradient; goes when the parameter goes
_spare = WeakTensorKeyDictionary()


def new_gradient(centres: Tensor, parameter: Tensor) -> Tensor:
    """Uninitialised memory for a gradient: that of the one discarded last, if there is one.

    A second gradient before the first one is discarded gets memory of its own.

    Args:
        centres: what the gradient is of: the parameter, or a view of all of it in another shape.
        parameter: see there.

    Returns:
        A tensor of the centres' shape and type.
    """
    spare: Tensor | None = _spare.pop(parameter, None)
    if spare is not None and spare.numel() == centres.numel() and spare.dtype == centres.dtype:
        return spare.view(centres.shape)
    return in_huge_pages(torch.empty_like(centres))


def discard_gradient(parameter: Tensor) -> None:
    """Clear a parameter's gradient, which nobody may look at any more: the next step overwrites it.

    For parameters whose backward pass asks `new_gradient`, and which last: for others it would only hold memory.
    """
    gradient, parameter.grad = parameter.grad, None
    if gradient is not None and gradient.device.type == "cpu" and gradient.nbytes >= MMAP_THRESHOLD_BYTES:
        _spare[parameter] = gradient


def kept_bytes(parameter: Tensor) -> int:
    """Memory that waits for the parameter's next gradient."""
    spare: Tensor | None = _spare.get(parameter, None)
    return 0 if spare is None else spare.nbytes
