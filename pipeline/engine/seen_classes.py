"""Classes that training does not reach: their centres are only pushed away, never pulled."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline import dist
from pipeline.data.loader import StepBatch


class SeenClasses:
    """Counts dead centres: classes of which a whole epoch has shown no valid photo.

    Photos that cannot be read, that were withdrawn or that an identity-balanced order leaves out are why there are any.
    It costs a byte a class and, once an epoch, a reduction of these over ranks.

    Args:
        num_classes: over all ranks.
        epoch: passes over the data that are done; counting begins with the next whole one.
        device: where labels are.
    """

    def __init__(self, num_classes: int, epoch: float, device: torch.device) -> None:
        # one more for masked slots: choosing the valid ones would make the host wait for the device
        self._seen = torch.zeros(num_classes + 1, dtype=torch.uint8, device=device)
        self._epoch = int(epoch)
        self._is_whole = epoch == self._epoch
        self._num_dead: int | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """`dead_centres` of the last whole epoch, nothing before one is over."""
        return {} if self._num_dead is None else {"dead_centres": float(self._num_dead)}

    def add(self, batch: StepBatch, epoch: float) -> None:
        """Take in a step, after which `epoch` passes are done. Collective on all ranks where an epoch ends."""
        masked = len(self._seen) - 1
        labels = torch.cat([torch.where(micro.valid, micro.labels, masked) for micro in batch.micro_batches])
        self._mark(labels)
        if int(epoch) == self._epoch:
            return
        dist.all_reduce_max(self._seen)
        if self._is_whole:
            self._num_dead = int((self._seen[:-1] == 0).sum())
        self._epoch, self._is_whole = int(epoch), True
        self._seen.zero_()
        self._mark(labels)  # a step across the border belongs to both epochs

    def _mark(self, labels: Tensor) -> None:
        self._seen.index_fill_(0, labels, 1)
