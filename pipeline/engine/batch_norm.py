"""Running statistics of batch norm that do not depend on the number of ranks.

A micro-batch is the group that batch norm normalises over. PyTorch moves the running statistics once per forward pass,
so they would depend on how many micro-batches each rank walks, and on their order. Here they move once a step, by the
mean of what every micro-batch of the global batch would have moved them to: an update is linear in the group's
statistics, so the mean of the updated values is the update with the mean statistics.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline import dist
from pipeline.engine.synchronised_norm import SynchronisedBatchNorm


class RunningStatistics:
    """Gathers the running statistics of all batch norms in a model over the micro-batches of a step.

    Those in eval mode when a step begins, because they are frozen, keep theirs.

    All ranks make the same calls: `micro_batch` around each forward pass, then `finish_step`, which is collective.
    """

    def __init__(self, model: nn.Module) -> None:
        self._norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
        self._synchronised = [m for m in self._norms if isinstance(m, SynchronisedBatchNorm)]
        self._buffers: list[Tensor] = []
        self._counters: list[Tensor] = []
        self._before: list[Tensor] | None = None
        self._sums: list[Tensor] = []
        self._counts_before: list[Tensor] = []

    @contextmanager
    def micro_batch(self, is_filler: bool, is_repeated: bool = False) -> Iterator[None]:
        """Run one forward pass from the step's initial statistics; a filler or a repetition leaves no trace.

        A filler counts for nothing among what is normalised together, either, until its backward pass is done.
        """
        for norm in self._synchronised:
            norm.is_filler = is_filler
        if self._before is None:
            norms = [m for m in self._norms if m.training]
            self._buffers = [b for m in norms for b in (m.running_mean, m.running_var) if b is not None]
            self._counters = [m.num_batches_tracked for m in norms if m.num_batches_tracked is not None]
            self._before = [b.clone() for b in self._buffers]
            self._counts_before = [c.clone() for c in self._counters]
            self._sums = [torch.zeros_like(b) for b in self._buffers]
        else:
            self._restore(self._before)
        yield
        if not (is_filler or is_repeated) and self._buffers:
            torch._foreach_add_(self._sums, self._buffers)

    @torch.no_grad()
    def finish_step(self, num_micro_batches_global: int) -> None:
        """Set the statistics to the mean over the global batch's micro-batches. Collective on all ranks."""
        if not self._buffers:
            self._before = None
        if self._before is None:
            return
        flat = torch.cat([s.reshape(-1) for s in self._sums])
        dist.all_reduce_sum(flat)
        flat /= num_micro_batches_global
        sizes = [b.numel() for b in self._buffers]
        means = [part.view_as(b) for part, b in zip(flat.split(sizes), self._buffers, strict=True)]
        self._restore(means)
        for counter, before in zip(self._counters, self._counts_before, strict=True):
            counter.copy_(before + 1)
        self._before = None

    def discard_step(self) -> None:
        """Leave the statistics as they were before the step. Not collective."""
        if self._before is not None:
            self._restore(self._before)
            for counter, before in zip(self._counters, self._counts_before, strict=True):
                counter.copy_(before)
        self._before = None

    @torch.no_grad()
    def _restore(self, values: list[Tensor]) -> None:
        if self._buffers:
            torch._foreach_copy_(self._buffers, values)
