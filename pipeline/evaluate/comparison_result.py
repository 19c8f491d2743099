"""What a comparison of models found, as written to `comparison.json`. `docs/evaluation.md` explains the fields."""

from __future__ import annotations

from typing import Literal

from pipeline.evaluate.result import Bounds, RocPoints
from pipeline.evaluate.result_sections import Frozen

SCHEMA_VERSION = 1

Verdict = Literal["better", "worse", "unsettled", "no_difference"]


class ComparedModel(Frozen):
    """One of the models."""

    name: str
    """Short, and no other model's."""
    checkpoint: str
    step: int | None
    """null, as the weights, where it is no training run."""
    weights: Literal["ema", "raw"] | None
    flip: bool
    """Whether the mirror image's embedding was added."""
    crop_px: int | None
    embedding_dim: int
    num_parameters: int | None
    multiply_adds: int | None
    """Of a forward pass over one photo; null where they could not be counted."""
    embedding_ms: float | None
    """Milliseconds a photo takes to embed, mirror image included with `flip`; of the set with most photos timed. null
    where no model ran."""
    batch: int | None
    """Photos a batch when that was measured."""
    device: str
    """On what it was measured."""


class Figure(Frozen):
    """One figure of one model on one set."""

    value: float | None
    """null where it is not defined."""
    interval: Bounds | None
    is_clearly_best: bool
    """Whether the interval of the paired difference to each other model leaves 0 out, on the good side."""


class OnSet(Frozen):
    """One model on one set, measured on the pairs that all models of the set have."""

    model: str
    folder: str
    """Where its `evaluation.json` is."""
    num_pairs_dropped: int
    """Pairs of the list that this model's evaluation could not measure."""
    accuracy_std: float
    """Over folds."""
    figures: dict[str, Figure]
    """Keys `accuracy`, `tar_at_far.1e-3` for each rate that was measured, `eer`, `auc`, `d_prime`."""
    roc: RocPoints


class McNemarTest(Frozen):
    """McNemar's test, each model at the threshold that is best on the other folds."""

    only_baseline: int
    """Pairs that only the baseline judges rightly."""
    only_model: int
    p_value: float
    corrected_p_value: float
    """By Holm's method, for all tests of the comparison."""
    method: Literal["exact", "chi2"]


class FigureDifference(Frozen):
    """The model's figure minus the baseline's."""

    value: float | None
    interval: Bounds | None
    is_clear: bool
    """Whether the interval leaves 0 out."""


class PairedTest(Frozen):
    """One model against the baseline on one set."""

    model: str
    baseline: str
    verdict: Verdict
    """On accuracy; `better` and `worse` where the interval leaves 0 out, the corrected p-value is below 0.05 and both
    point the same way; `unsettled` where one of the two holds, or they point different ways."""
    sentence: str
    """The verdict in words."""
    mcnemar: McNemarTest
    differences: dict[str, FigureDifference]
    """Keys as those of `OnSet.figures`."""


class ComparedSet(Frozen):
    """One test set."""

    name: str
    paths: list[str]
    """Where the photos were, as the evaluations were told."""
    pairs_sha256: str
    num_pairs: int
    """Measured for all models."""
    num_same: int
    num_different: int
    num_pairs_left_out: int
    """Measured for some model, but not for all, and left out for all."""
    unit: Literal["identity", "pair"]
    """What was drawn with replacement for the intervals."""
    models: list[OnSet]
    tests: list[PairedTest]


class Comparison(Frozen):
    """The content of `comparison.json`."""

    schema_version: int = SCHEMA_VERSION
    created_at: str
    """UTC, ISO 8601."""
    command: str
    """How to reproduce it."""
    version: str
    """Of facemill."""
    level: float
    """Of the intervals; each holds for itself, they are not corrected for their number."""
    num_resamples: int
    correction: str
    """How p-values were corrected, and for how many tests."""
    baseline: str
    """The model that the others are tested against."""
    models: list[ComparedModel]
    sets: list[ComparedSet]
    notes: list[str]
    """What a reader must know before trusting the figures."""
