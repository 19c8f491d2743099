"""One evaluation from photos and pairs to figures: what `launch/evaluate.py` does once model and data are opened."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Literal

import numpy as np
import torch

from pipeline.config.errors import UserError
from pipeline.evaluate import intervals, result, verification
from pipeline.evaluate.embed import Embeddings
from pipeline.evaluate.pairs import Pair, PairList, Photo


@dataclass(frozen=True)
class ScoredPairs:
    """The pairs whose photos both have an embedding, and how alike they are."""

    pairs: Sequence[Pair]
    distances: verification.Floats
    """[P] squared distances, in the order of `pairs`."""
    same: verification.Bools
    fold: verification.Ints | None
    """None where the protocol has no folds."""
    missing: dict[Photo, str]
    num_photos: int
    num_dropped: int
    place: verification.Ints
    """[P] each pair's place in the list, dropped pairs counted."""
    unit: Literal["photo", "template"] = "photo"

    def people(self, are_known: bool) -> tuple[verification.Ints, verification.Ints]:
        """[P] and [P] numbers of each pair's two people, as `intervals.resample` takes them.

        Args:
            are_known: whether it is known who is on the photos; else each pair gets a number of its own.
        """
        if not are_known:
            own = np.arange(len(self.pairs))
            return own, own
        names = [[getattr(pair, side).identity for pair in self.pairs] for side in ("left", "right")]
        left, right = np.unique(names, return_inverse=True)[1].reshape(2, -1)
        return left, right


def measure(scored: ScoredPairs, flip: bool) -> result.Verification:
    """All verification figures of scored pairs.

    Raises:
        UserError: only one kind of pairs is left, or they are all of one fold.
    """
    accuracy = None if scored.fold is None else _accuracy(scored.distances, scored.same, scored.fold)
    roc = verification.roc_curve(scored.distances, scored.same)
    threshold, best = verification.best_threshold(scored.distances, scored.same)
    histogram = verification.score_histogram(scored.distances, scored.same)
    thin = verification.thin_roc(roc)
    return result.Verification(
        protocol="no folds"
        if accuracy is None
        else f"{len(accuracy.folds)}-fold, unshuffled, squared distance < threshold of 0 to 4 by 0.01",
        unit=scored.unit,
        flip=flip,
        num_pairs=len(scored.pairs),
        num_same=roc.num_same,
        num_different=roc.num_different,
        num_pairs_dropped=scored.num_dropped,
        missing=[result.Missing(photo=str(photo), reason=reason) for photo, reason in scored.missing.items()],
        accuracy=accuracy,
        tar_at_far=tar_at_far(roc),
        auc=verification.area_under_curve(roc),
        eer=verification.equal_error_rate(roc),
        best_threshold=result.Threshold(
            squared_distance=threshold, cosine=verification.cosine(threshold), accuracy=best
        ),
        d_prime=verification.d_prime(scored.distances, scored.same),
        fixed_threshold=judge(scored, verification.FACENET_THRESHOLD),
        roc=result.RocPoints(far=roc.far[thin].tolist(), tar=roc.tar[thin].tolist()),
        histogram=result.Histogram(
            edges=histogram.edges.tolist(), same=histogram.same.tolist(), different=histogram.different.tolist()
        ),
    )


def _accuracy(distances: verification.Floats, same: verification.Bools, fold: verification.Ints) -> result.Accuracy:
    folds = verification.fold_accuracy(distances, same, fold)
    return result.Accuracy(
        mean=folds.mean,
        std=folds.std,
        per_fold=folds.accuracy.tolist(),
        folds=[
            result.Fold(fold=number + 1, num_pairs=count, accuracy=accuracy, threshold=threshold)
            for number, count, accuracy, threshold in zip(
                folds.fold.tolist(),
                folds.num_pairs.tolist(),
                folds.accuracy.tolist(),
                folds.threshold.tolist(),
                strict=True,
            )
        ],
    )


def judge(scored: ScoredPairs, threshold: float) -> result.FixedThreshold:
    """What a threshold from elsewhere, a squared distance, does on pairs of both kinds."""
    found = verification.at_threshold(scored.distances, scored.same, threshold)
    assert found.far is not None
    assert found.tar is not None
    return result.FixedThreshold(
        squared_distance=threshold,
        cosine=verification.cosine(threshold),
        accuracy=found.accuracy,
        far=found.far,
        tar=found.tar,
    )


def add_intervals(figures: result.Verification, scored: ScoredPairs, by_identity: bool) -> result.Verification:
    """The figures with bootstrap intervals; see `pipeline.evaluate.intervals`.

    Args:
        figures: of `measure`.
        scored: what they were measured on.
        by_identity: draw people; else pairs, where it is not known who is on the photos. Pairs of templates get none:
            who is in a template is not known, and there are millions of pairs that share templates.
    """
    if scored.fold is None:
        return figures
    left, right = scored.people(by_identity)
    fars = {
        f"tar_at_far.{name}": far
        for name, far in verification.FAR_TARGETS.items()
        if figures.tar_at_far[name].tar is not None
    }
    weighted = intervals.VerificationFigures(scored.distances, scored.same, scored.fold, fars)
    found = intervals.bootstrap(weighted, left, right)
    bounds = {name: None if one is None else result.Bounds(low=one.low, high=one.high) for name, one in found.items()}
    added = result.Intervals(
        level=intervals.LEVEL,
        num_resamples=intervals.NUM_RESAMPLES,
        unit="identity" if by_identity else "pair",
        figures=bounds,
    )
    return figures.model_copy(update={"intervals": added})


def coverage_notes(scored: ScoredPairs, pairs: PairList) -> list[str]:
    """What the report must say about photos and folds that fell out, a sentence each."""
    notes = []
    if scored.missing:
        reasons: dict[str, int] = {}
        for reason in scored.missing.values():
            reasons[reason] = reasons.get(reason, 0) + 1
        listed = ", ".join(
            f"{reason}: {count:,}" for reason, count in sorted(reasons.items(), key=lambda item: -item[1])[:5]
        )
        if scored.unit == "template":
            notes.append(f"{len(scored.missing):,} photos are missing from their templates ({listed}).")
        if scored.num_dropped:
            notes.append(
                f"{scored.num_dropped:,} of {len(scored.pairs) + scored.num_dropped:,} pairs were dropped because "
                f"{len(scored.missing):,} photos are missing ({listed}). The figures describe the other "
                f"{len(scored.pairs):,} pairs."
            )
    num_folds = pairs.num_folds if scored.fold is None else len(np.unique(scored.fold))
    if num_folds < pairs.num_folds:
        notes.append(f"Only {num_folds} of {pairs.num_folds} folds have pairs left.")
    return notes


def environment(device: torch.device) -> result.Environment:
    """Versions and hardware of this process."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    packages = ("facemill", "torch", "torchvision", "numpy", "onnxruntime")
    return result.Environment(
        versions={"python": platform.python_version(), **{package: version(package) for package in packages}},
        platform=platform.platform(),
        device=name,
        num_cores=len(os.sched_getaffinity(0)),
    )


def score_embeddings(found: Embeddings, pairs: PairList, num_photos: int) -> ScoredPairs:
    """Measure each pair whose photos both have an embedding.

    Args:
        found: of the pairs' photos, and perhaps of others.
        pairs: the pairs.
        num_photos: how many photos the pairs name.

    Raises:
        UserError: no pair has both.
    """
    row = {photo: number for number, photo in enumerate(found.photos)}
    place = [number for number, pair in enumerate(pairs.pairs) if pair.left in row and pair.right in row]
    kept = [pairs.pairs[number] for number in place]
    num_dropped = len(pairs.pairs) - len(kept)
    if not kept:
        first, reason = next(iter(found.missing.items()))
        raise UserError(
            "pairs",
            f"none of {len(pairs.pairs):,} pairs has both photos; {len(found.missing):,} of {num_photos:,} photos are "
            f"missing, the first {first} ({reason})",
            "the photos that the list names",
            "check that --pairs and --data belong together",
        )
    left, right = _rows(row, [pair.left for pair in kept]), _rows(row, [pair.right for pair in kept])
    return ScoredPairs(
        pairs=kept,
        distances=verification.squared_distances(found.vectors, left, right),
        same=np.array([pair.same for pair in kept], bool),
        fold=np.array([pair.fold for pair in kept], np.int64),
        missing={photo: found.missing[photo] for photo in pairs.photos() if photo in found.missing},
        num_photos=len(found.photos),
        num_dropped=num_dropped,
        place=np.array(place, np.int64),
    )


def _rows(row: dict[Photo, int], photos: Sequence[Photo]) -> verification.Ints:
    return np.array([row[photo] for photo in photos], np.int64)


def tar_at_far(roc: verification.Roc) -> dict[str, result.TarAtFar]:
    """The rates of `verification.FAR_TARGETS`, those that take more pairs than there are without a value."""
    return {name: _tar_at_far(roc, far) for name, far in verification.FAR_TARGETS.items()}


def _tar_at_far(roc: verification.Roc, far: float) -> result.TarAtFar:
    point = verification.true_accept_rate(roc, far)
    needed = verification.least_different_pairs(far)
    if point is None:
        return result.TarAtFar(tar=None, far=None, threshold=None, num_different_needed=needed)
    threshold = point.threshold if np.isfinite(point.threshold) else None
    return result.TarAtFar(tar=point.tar, far=point.far, threshold=threshold, num_different_needed=needed)


def _processor() -> str:
    """The processor's name where the system tells it."""
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
