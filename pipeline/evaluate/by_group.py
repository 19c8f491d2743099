"""Verification within each group of people, for pairs that come with groups."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pipeline.config.errors import UserError
from pipeline.evaluate import result, verification
from pipeline.evaluate.grouped_pairs import Groups
from pipeline.evaluate.run import ScoredPairs, tar_at_far


def figures_by_group(scored: ScoredPairs, groups: Mapping[str, Groups]) -> dict[str, list[result.GroupFigures]]:
    """The figures of the pairs whose photos are both of a group, in alphabetical order of groups.

    Args:
        scored: measured pairs.
        groups: by name, the groups of the photos of all pairs of the list, dropped ones included; an empty one is none.
    """
    found: dict[str, list[result.GroupFigures]] = {}
    for name, sides in groups.items():
        left, right = sides.at(scored.place)
        within = np.where(left == right, left, "")
        found[name] = [_figures(scored, group, within == group) for group in np.unique(within).tolist() if group]
    return found


def _figures(scored: ScoredPairs, group: str, is_member: verification.Bools) -> result.GroupFigures:
    distances, same = scored.distances[is_member], scored.same[is_member]
    mean = std = None
    has_both = bool(same.any() and not same.all())
    # Of one kind, whatever calls all pairs that kind is right every time.
    if scored.fold is not None and has_both:
        try:
            folds = verification.fold_accuracy(distances, same, scored.fold[is_member])
            mean, std = folds.mean, folds.std
        except UserError:  # its pairs are all of one fold
            pass
    roc = verification.roc_curve(distances, same) if has_both else None
    return result.GroupFigures(
        group=group,
        num_pairs=len(same),
        num_same=int(np.count_nonzero(same)),
        num_different=int(np.count_nonzero(~same)),
        accuracy=mean,
        accuracy_std=std,
        auc=None if roc is None else verification.area_under_curve(roc),
        eer=None if roc is None else verification.equal_error_rate(roc),
        tar_at_far=None if roc is None else tar_at_far(roc),
    )
