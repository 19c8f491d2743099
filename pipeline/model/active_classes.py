"""Which classes a step takes part in and trains: all positives, a keyed share of the negatives, nothing frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.model.head import ActiveRows
from pipeline.model.keyed import keyed_uniform

_SAMPLING_KEY = 0x53414D504C45


@dataclass(frozen=True)
class ActiveClasses:
    """The classes of this rank that a step computes with."""

    classes: Tensor | None
    """[m] int64, ascending, counted from this rank's first; None: all."""
    num_classes: int
    """Of this rank."""
    rows: dict[str, ActiveRows]
    """For each parameter of the classes, see there."""

    def places(self, columns: Tensor) -> Tensor:
        """Where classes [N], counted from this rank's first, stand among the active ones: [N], −1 where they do not."""
        inside = (columns >= 0) & (columns < self.num_classes)
        if self.classes is None:
            return torch.where(inside, columns, -1)
        if len(self.classes) == 0:
            return torch.full_like(columns, -1)
        place = torch.searchsorted(self.classes, columns).clamp(max=len(self.classes) - 1)
        return torch.where(inside & (self.classes[place] == columns), place, -1)


def choose_classes(
    parameters: Mapping[str, nn.Parameter],
    positives: Tensor,
    first_class: int,
    sample_rate: float,
    num_frozen: int,
    seed: int,
    step: int,
) -> ActiveClasses:
    """Choose a step's classes on this rank. Not collective: what it draws belongs to (seed, step, class).

    Args:
        parameters: [classes, ...] each, this rank's.
        positives: [M] int64, the batch's labels counted from this rank's first class; others' are passed over.
        first_class: of this rank.
        sample_rate: probability with which a class that is not among the positives takes part.
        num_frozen: classes from 0, over all ranks, that take part and do not move.
        seed: of the run.
        step: optimizer updates done so far.
    """
    num_classes = len(next(iter(parameters.values())))
    everything = torch.arange(num_classes, device=positives.device)
    first_trained = min(max(num_frozen - first_class, 0), num_classes)
    if sample_rate == 1:
        rows = {
            name: ActiveRows(everything[first_trained:], p, everything[first_trained:])
            for name, p in parameters.items()
        }
        return ActiveClasses(None, num_classes, rows)
    takes_part = keyed_uniform(seed ^ _SAMPLING_KEY, step, everything + first_class) < sample_rate
    takes_part[positives[(positives >= 0) & (positives < num_classes)]] = True
    classes = everything[takes_part]
    trained = None if first_trained == 0 else torch.nonzero(classes >= first_trained).squeeze(1)
    moved = classes if trained is None else classes[trained]
    rows = {
        name: ActiveRows(moved, nn.Parameter(parameter.detach().index_select(0, classes)), trained)
        for name, parameter in parameters.items()
    }
    return ActiveClasses(classes, num_classes, rows)
