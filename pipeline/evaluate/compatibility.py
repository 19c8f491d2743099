"""Whether a new model's queries can be searched in an old model's gallery, so that it need not be embedded anew."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.config.errors import UserError
from pipeline.evaluate.verification import (
    Bools,
    Floats,
    Ints,
    least_different_pairs,
    roc_curve,
    squared_distances_between,
    true_accept_rate,
)


@dataclass(frozen=True)
class Compatibility:
    """TAR at one FAR: queries by one model, gallery by another."""

    far: float
    old_old: float
    new_old: float
    """New queries in the old gallery, at a threshold of its own."""
    new_new: float

    @property
    def is_compatible(self) -> bool:
        """Whether new queries do better in the old gallery than old ones (Shen et al. 2020, their empirical test)."""
        return self.new_old > self.old_old

    @property
    def update_gain(self) -> float | None:
        """(new_old - old_old) / (new_new - old_old): the share of the whole gain had without embedding anew.

        None where the new model is no better than the old one.
        """
        gain = self.new_new - self.old_old
        return (self.new_old - self.old_old) / gain if gain > 0.0 else None


def compatibility(
    old: Floats, new: Floats, query: Ints, gallery: Ints, same: Bools, far: float = 1e-3
) -> Compatibility:
    """Verify pairs three times: both photos by the old model, the query by the new one, both by the new one.

    Args:
        old, new: [N, D] float64, L2-normalised embeddings of the same photos by two models.
        query, gallery: [P] row numbers of each pair.
        same: [P] the truth.
        far: the rate to compare at; thresholds are those of each of the three.

    Raises:
        UserError: embeddings of two lengths, one kind of pairs only, or too few different pairs for the rate.
    """
    if old.shape != new.shape:
        raise UserError("new", f"embeddings {list(new.shape)}", f"{list(old.shape)}, as the old model's")
    rates = []
    for queries, galleries in ((old, old), (new, old), (new, new)):
        roc = roc_curve(squared_distances_between(queries, galleries, query, gallery), same)
        point = true_accept_rate(roc, far)
        if point is None:
            needed = least_different_pairs(far)
            raise UserError("pairs", f"{roc.num_different:,} different ones", f"{needed:,} for a FAR of {far:g}")
        rates.append(point.tar)
    return Compatibility(far, *rates)
