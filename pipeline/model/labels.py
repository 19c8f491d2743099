"""The check that a head makes of the labels it is given."""

from __future__ import annotations

from torch import Tensor

from pipeline.config.errors import UserError

_NUM_SHOWN = 5


def check_labels(labels: Tensor, sample_ids: Tensor, valid: Tensor, num_classes: int) -> None:
    """Refuse labels that are no class. Not collective: called with the gathered batch, it ends the same on all ranks.

    Args:
        labels, sample_ids: [N] int64.
        valid: [N] bool; the others may hold anything.
        num_classes: labels go from 0 to one below.

    Raises:
        UserError: naming the samples.
    """
    wrong = valid & ((labels < 0) | (labels >= num_classes))
    if not wrong.any():
        return
    found = ", ".join(
        f"sample {sample} has label {label}"
        for sample, label in zip(
            sample_ids[wrong][:_NUM_SHOWN].tolist(), labels[wrong][:_NUM_SHOWN].tolist(), strict=True
        )
    )
    more = int(wrong.sum()) - _NUM_SHOWN
    raise UserError(
        "labels",
        found + (f" and {more} more" if more > 0 else ""),
        f"0 to {num_classes - 1}",
        "the head was built for another set of identities; preprocess verify checks the data set",
    )
