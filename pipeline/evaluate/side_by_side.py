"""Models side by side on the test sets they share: the same pairs for all, and paired tests against a baseline.

Which model is better is judged on accuracy, and by two tests that err in different ways. McNemar's takes pairs for
independent, which they are not where people are in many of them; its p-values are corrected for the number of tests.
The bootstrap draws people, but each of its intervals holds for itself. A model is called better where both rule chance
out and say so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.errors import UserError
from pipeline.evaluate import comparison, intervals, verification
from pipeline.evaluate.comparison_result import (
    ComparedModel,
    ComparedSet,
    Figure,
    FigureDifference,
    McNemarTest,
    OnSet,
    PairedTest,
    Verdict,
)
from pipeline.evaluate.evaluated import Evaluated, name_models, name_sets
from pipeline.evaluate.intervals import Interval, Resampled
from pipeline.evaluate.result import Bounds, RocPoints
from pipeline.evaluate.scores import Scores
from pipeline.evaluate.verification import FAR_TARGETS, Ints

SIGNIFICANCE = 0.05
_LESS_IS_BETTER = frozenset({"eer"})
_PAIR_COLUMNS = ["left", "right", "left_identity", "right_identity", "same", "fold"]


@dataclass(frozen=True)
class SideBySide:
    """What `Comparison` says of models and sets."""

    models: list[ComparedModel]
    sets: list[ComparedSet]
    baseline: str
    num_tests: int
    notes: list[str]


@dataclass(frozen=True)
class _Measured:
    """One model on one set."""

    name: str
    source: Evaluated
    folds: verification.FoldAccuracy
    is_right: verification.Bools
    """[P] whether each pair is judged rightly at its fold's threshold."""
    resampled: Resampled
    roc: verification.Roc


@dataclass(frozen=True)
class _Set:
    """One set, its models measured on the pairs they share."""

    name: str
    scores: Scores
    """Of one of the models, for what is the same for all."""
    num_left_out: int
    models: list[_Measured]
    baseline: _Measured

    @property
    def others(self) -> list[_Measured]:
        return [model for model in self.models if model is not self.baseline]


def compare(
    evaluations: Sequence[Evaluated], baseline: int = 0, *, num_resamples: int = intervals.NUM_RESAMPLES
) -> SideBySide:
    """Measure all models on the pairs they share, and test each against the baseline.

    Args:
        evaluations: of `open_folders`.
        baseline: the place of an evaluation of the model that the others are tested against. On a set that it was
            not tested on, the first model that was stands in for it.
        num_resamples: see `intervals.resample`.

    Raises:
        UserError: evaluations of a set share no pairs, or contradict each other about them.
    """
    by_model: dict[tuple[object, ...], list[Evaluated]] = {}
    by_set: dict[str, list[Evaluated]] = {}
    for one in evaluations:
        by_model.setdefault(one.model_key, []).append(one)
        by_set.setdefault(one.scores.pairs_sha256, []).append(one)
    model_names = dict(zip(by_model, name_models([ones[0] for ones in by_model.values()]), strict=True))
    assert len(set(model_names.values())) == len(by_model), "reports find a model's figures by its name"
    set_names = name_sets([ones[0] for ones in by_set.values()])
    first = model_names[evaluations[baseline].model_key]
    sets = [
        _measure_set(name, ones, [model_names[one.model_key] for one in ones], first, num_resamples)
        for name, ones in zip(set_names, by_set.values(), strict=True)
    ]
    # p-values of all sets are corrected together: the reader looks through all of them for one that stands out
    tests = [[comparison.mcnemar(one.baseline.is_right, two.is_right) for two in one.others] for one in sets]
    corrected = iter(comparison.holm([test.p_value for of_set in tests for test in of_set]))
    described = [_describe_model(model_names[key], ones) for key, ones in by_model.items()]
    return SideBySide(
        models=described,
        sets=[
            _describe_set(one, [_test(one, *found, next(corrected)) for found in zip(one.others, of_set, strict=True)])
            for one, of_set in zip(sets, tests, strict=True)
        ],
        baseline=first,
        num_tests=sum(map(len, tests)),
        notes=[note for one in sets for note in _set_notes(one, first)] + _device_notes(described),
    )


def common_pairs(scores: Sequence[tuple[Path, Scores]]) -> tuple[list[Scores], int]:
    """The scores of the pairs that all have, in the same order, and how many others some have.

    Args:
        scores: of one pair list, each with what to name in messages.

    Raises:
        UserError: no pair is in all, or they disagree about people, folds or which pairs are same.
    """
    first_folder = scores[0][0]
    keys = [_pair_keys(one.table) for _, one in scores]
    shared = keys[0]
    for one in keys[1:]:
        shared = shared.filter(pc.is_in(shared, value_set=one))
    num_all = len(pc.unique(pa.chunked_array(keys, pa.string())))
    if len(shared) == 0:
        raise UserError(scores[-1][0], f"no pair in common with {first_folder}", "models tested on the same photos")
    kept = [
        Scores(one.table.filter(pc.is_in(key, value_set=shared)), one.pairs_sha256)
        for key, (_, one) in zip(keys, scores, strict=True)
    ]
    for (folder, _), one in zip(scores, kept, strict=True):
        if not one.table.select(_PAIR_COLUMNS).equals(kept[0].table.select(_PAIR_COLUMNS)):
            found = f"other pairs, people or folds than {first_folder}, though of one pair list"
            raise UserError(folder / "scores.parquet", found, remedy="evaluate again")
    return kept, num_all - len(shared)


def _pair_keys(table: pa.Table) -> pa.Array:
    """[P] what tells pairs apart: the photos, and which of its repeats it is where a list names a pair again."""
    photos = pc.binary_join_element_wise(table["left"], table["right"], "\t").combine_chunks()
    pair = photos.dictionary_encode().indices.to_numpy()
    order = np.argsort(pair, kind="stable")
    first = np.flatnonzero(np.diff(pair[order], prepend=-1))
    repeat = np.empty(len(pair), np.int64)
    repeat[order] = np.arange(len(pair)) - np.repeat(first, np.diff(first, append=len(pair)))
    return pc.binary_join_element_wise(photos, pc.cast(pa.array(repeat), pa.string()), "\t")


def _measure_set(
    name: str, sources: Sequence[Evaluated], model_names: Sequence[str], baseline: str, num_resamples: int
) -> _Set:
    scores, num_left_out = common_pairs([(one.folder, one.scores) for one in sources])
    left, right = scores[0].people()
    try:
        models = [
            _measure(model, source, one, left, right, num_resamples)
            for model, source, one in zip(model_names, sources, scores, strict=True)
        ]
    except UserError as error:
        remedy = f"{num_left_out:,} were measured for some models only and are left out for all" if num_left_out else ""
        raise UserError(name, error.found, error.expected, remedy) from None
    return _Set(name, scores[0], num_left_out, models, next((one for one in models if one.name == baseline), models[0]))


def _measure(name: str, source: Evaluated, scores: Scores, left: Ints, right: Ints, num_resamples: int) -> _Measured:
    distances, same, fold = scores.distances, scores.same, scores.fold
    roc = verification.roc_curve(distances, same)
    folds = verification.fold_accuracy(distances, same, fold)
    threshold = folds.threshold[verification.number_folds(fold)[1]]
    fars = {
        f"tar_at_far.{far_name}": far
        for far_name, far in FAR_TARGETS.items()
        if roc.num_different >= verification.least_different_pairs(far)
    }
    figures = intervals.VerificationFigures(distances, same, fold, fars)
    resampled = intervals.resample(figures, left, right, num_resamples=num_resamples)
    return _Measured(name, source, folds, (distances < threshold) == same, resampled, roc)


def _describe_set(one: _Set, tests: list[PairedTest]) -> ComparedSet:
    return ComparedSet(
        name=one.name,
        paths=sorted({model.source.evaluation.data.path for model in one.models}),
        pairs_sha256=one.scores.pairs_sha256,
        num_pairs=len(one.scores.table),
        num_same=one.baseline.roc.num_same,
        num_different=one.baseline.roc.num_different,
        num_pairs_left_out=one.num_left_out,
        unit="identity" if one.scores.has_identities else "pair",
        models=[_on_set(model, [other for other in one.models if other is not model]) for model in one.models],
        tests=tests,
    )


def _on_set(model: _Measured, others: Sequence[_Measured]) -> OnSet:
    leads = [comparison.differences(other.resampled, model.resampled) for other in others]
    thin = verification.thin_roc(model.roc)
    return OnSet(
        model=model.name,
        folder=str(model.source.folder),
        num_pairs_dropped=model.source.evaluation.verification.num_pairs_dropped,
        accuracy_std=model.folds.std,
        figures={
            name: Figure(
                value=_or_none(value),
                interval=_bounds(intervals.percentile_interval(model.resampled.draws[name])),
                is_clearly_best=bool(leads) and all(_is_lead(name, lead[name]) for lead in leads),
            )
            for name, value in model.resampled.values.items()
        },
        roc=RocPoints(far=model.roc.far[thin].tolist(), tar=model.roc.tar[thin].tolist()),
    )


def _is_lead(name: str, difference: comparison.Difference) -> bool:
    return difference.is_clear and (difference.value < 0.0) == (name in _LESS_IS_BETTER)


def _test(one: _Set, model: _Measured, mcnemar: comparison.McNemar, corrected: float) -> PairedTest:
    found = comparison.differences(one.baseline.resampled, model.resampled)
    verdict = judge(found["accuracy"], mcnemar, corrected)
    return PairedTest(
        model=model.name,
        baseline=one.baseline.name,
        verdict=verdict,
        sentence=put_in_words(model.name, one.baseline.name, one.name, verdict, found["accuracy"]),
        mcnemar=McNemarTest(
            only_baseline=mcnemar.only_first,
            only_model=mcnemar.only_second,
            p_value=mcnemar.p_value,
            corrected_p_value=corrected,
            method=mcnemar.method,
        ),
        differences={
            name: FigureDifference(
                value=_or_none(difference.value),
                interval=_bounds(difference.interval),
                is_clear=difference.is_clear,
            )
            for name, difference in found.items()
        },
    )


def judge(difference: comparison.Difference, mcnemar: comparison.McNemar, corrected_p_value: float) -> Verdict:
    """What two tests together say of a difference in accuracy.

    Thresholds move from one bootstrap sample to the next and stay for McNemar's test, so that the two may even point
    different ways.

    Args:
        difference: of the model to the baseline.
        mcnemar: the baseline first.
        corrected_p_value: of `mcnemar`, corrected for the number of tests.
    """
    is_rare = corrected_p_value < SIGNIFICANCE
    if not (difference.is_clear or is_rare):
        return "no_difference"
    if difference.interval is not None and difference.is_clear and is_rare:
        signs = np.sign([difference.interval.low, difference.value, mcnemar.only_second - mcnemar.only_first])
        if (signs == 1).all():
            return "better"
        if (signs == -1).all():
            return "worse"
    return "unsettled"


def put_in_words(model: str, baseline: str, where: str, verdict: Verdict, difference: comparison.Difference) -> str:
    """A verdict as a sentence; accuracy in percentage points."""
    sign = -1 if verdict == "worse" else 1
    ends = [] if difference.interval is None else [difference.interval.low, difference.interval.high]
    low_high = " to ".join(_points(end) for end in sorted(sign * end for end in ends)) or "not defined"
    figures = f"{_points(sign * difference.value)} points, {intervals.LEVEL:.0%} interval {low_high}".replace("%", " %")
    if verdict in ("better", "worse"):
        return f"{model} is {verdict} than {baseline} on {where}: {figures}."
    if verdict == "unsettled":
        return f"{model} against {baseline} on {where}: not settled, the two tests do not agree ({figures})."
    return f"{model} and {baseline} on {where}: no difference that could not be chance ({figures})."


def _points(share: float) -> str:
    text = f"{100 * share:.2f}".replace("-", "−")  # as many places as in the tables
    return "0.00" if text == "−0.00" else text


def _describe_model(name: str, evaluations: Sequence[Evaluated]) -> ComparedModel:
    timed = max((one.evaluation for one in evaluations), key=lambda one: one.speed.num_photos if one.speed else 0)
    model, speed = timed.model, timed.speed
    return ComparedModel(
        name=name,
        checkpoint=model.checkpoint,
        step=model.step,
        weights=model.weights,
        flip=timed.verification.flip,
        crop_px=model.crop_px,
        embedding_dim=model.embedding_dim,
        num_parameters=model.num_parameters,
        multiply_adds=model.multiply_adds,
        embedding_ms=None if speed is None else speed.embedding_ms,
        batch=None if speed is None else speed.batch,
        device=timed.environment.device,
    )


def _set_notes(one: _Set, baseline: str) -> list[str]:
    notes = []
    if one.num_left_out:
        notes.append(
            f"{one.name}: {one.num_left_out:,} pairs were measured for some models only, and are left out for all: "
            "figures differ from those of the evaluations."
        )
    if one.baseline.name != baseline and one.others:
        notes.append(f"{one.name}: {baseline} was not tested on it; {one.baseline.name} stands in as the baseline.")
    for what, found in (
        ("data sets", {model.source.evaluation.data.digest for model in one.models}),
        ("detectors", {model.source.evaluation.data.detector.get("name") for model in one.models}),
    ):
        if len(found) > 1:
            notes.append(f"{one.name}: the models saw photos of different {what}, paired by the same list.")
    said: dict[str, list[str]] = {}
    for model in one.models:
        for note in model.source.evaluation.notes:
            said.setdefault(note, []).append(model.name)
    for note, names in said.items():
        of = "" if len(names) == len(one.models) else f", {', '.join(names)}"
        notes.append(f"{one.name}{of}: {note}")
    return notes


def _device_notes(models: Sequence[ComparedModel]) -> list[str]:
    devices = {model.device for model in models if model.embedding_ms is not None}
    return ["The models were timed on different devices: their times do not compare."] if len(devices) > 1 else []


def _bounds(interval: Interval | None) -> Bounds | None:
    return None if interval is None else Bounds(low=interval.low, high=interval.high)


def _or_none(value: float) -> float | None:
    return value if np.isfinite(value) else None
