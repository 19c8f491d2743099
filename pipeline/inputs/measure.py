"""Everything that is measured of a model on a test set: embeddings, pairs, and what was asked for beside."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from pipeline.config.errors import UserError
from pipeline.evaluate import result
from pipeline.evaluate.by_group import figures_by_group
from pipeline.evaluate.embed import extract_embeddings
from pipeline.evaluate.identify import identify
from pipeline.evaluate.recogniser import Recogniser
from pipeline.evaluate.result_sections import Sections
from pipeline.evaluate.run import ScoredPairs, add_intervals, judge, measure, score_embeddings
from pipeline.evaluate.sections import Asked, Measured, Progress, check_photos, measure_sections
from pipeline.evaluate.template_set import TemplateSet, embed_rows, score_templates
from pipeline.evaluate.template_weights import TemplateWeights
from pipeline.inputs.distractors import Strangers, search_distractors
from pipeline.inputs.test_sets import TestSet


@dataclass(frozen=True)
class Wanted:
    """What to measure, and how."""

    batch: int
    """Photos a batch."""
    flip: bool
    """Add the mirror image's embedding; not where embeddings come from a file."""
    identifies: bool
    """Search each photo among the split's people."""
    has_distractors: bool
    """Search among strangers, too."""
    sections: Asked
    template_weights: TemplateWeights
    carried: float | None
    """A threshold from elsewhere, a squared distance."""


@dataclass(frozen=True)
class Found:
    """What was measured."""

    scored: ScoredPairs
    verification: result.Verification
    embedding_s: float
    speed: result.Speed | None
    """None where no model ran."""
    identification: result.Identification | None = None
    sections: Sections = field(default_factory=Sections)
    """Empty of templates."""


def refuse_unfit(wanted: Wanted, recogniser: Recogniser, tests: TestSet, data: Path) -> None:
    """See that what is wanted goes together.

    Raises:
        UserError: it does not; the option is named.
    """
    if wanted.has_distractors and not wanted.identifies:
        raise UserError("--distractors", "given without --identify", "both", "add --identify")
    asked = wanted.sections
    for option, unfit, expected in _unfit(recogniser, tests, data):
        is_given = {
            "--identify": wanted.identifies,
            "--distractors": wanted.has_distractors,
            "--cluster": asked.clusters,
            "--map": asked.map_people is not None,
            "--robustness": asked.robustness,
            "--quality": asked.quality,
        }[option]
        if is_given:
            raise UserError(option, f"given with {unfit}", expected, f"leave {option} out")


def measure_test_set(
    recogniser: Recogniser, tests: TestSet, strangers: Strangers | None, wanted: Wanted, data: Path, progress: Progress
) -> Found:
    """Embed the photos and measure; what `refuse_unfit` lets through.

    Args:
        recogniser: the model.
        tests: photos and pairs.
        strangers: opened, where wanted.
        wanted: see there.
        data: what to name in messages.
        progress: opens a progress bar.

    Raises:
        UserError: too few photos for what is wanted, no pair with both photos, or embeddings that are not finite.
    """
    flip = wanted.flip and recogniser.embedder.stored is None
    if tests.templates is not None:
        return _measure_templates(recogniser, tests, tests.templates, wanted, flip, progress)
    photos = tests.split_photos if wanted.identifies or wanted.sections.clusters else tests.pairs.photos()
    check_photos(wanted.sections, photos, data)
    started = time.perf_counter()
    with progress(len(photos), "embedding") as advance:
        found = extract_embeddings(
            recogniser.embedder, tests.source, photos, batch=wanted.batch, flip=flip, advance=advance
        )
    embedding_s = time.perf_counter() - started
    scored = score_embeddings(found, tests.pairs, len(tests.pairs.photos()))
    figures = _verify(scored, tests, flip, wanted.carried)
    identification = identify(found, data) if wanted.identifies else None
    if identification is not None and strangers is not None:
        among = search_distractors(recogniser, strangers, found, batch=wanted.batch, flip=flip, progress=progress)
        identification = identification.model_copy(update={"distractors": among})
    measured = Measured(
        recogniser.embedder,
        tests.source,
        found,
        tests.groups,
        scored,
        threshold=figures.best_threshold.squared_distance if wanted.carried is None else wanted.carried,
        is_carried=wanted.carried is not None,
        knows_people=tests.knows_people,
        where=data,
    )
    return Found(
        scored=scored,
        verification=figures,
        embedding_s=embedding_s,
        speed=_speed(found.batch_ms, len(found.photos), wanted.batch),
        identification=identification,
        sections=measure_sections(wanted.sections, measured, batch=wanted.batch, flip=flip, progress=progress),
    )


def _unfit(recogniser: Recogniser, tests: TestSet, data: Path) -> Iterator[tuple[str, str, str]]:
    """Options that this model and this test set cannot do with, what is in the way, and what they take."""
    if recogniser.embedder.stored is not None:
        for option in ("--robustness", "--distractors"):
            yield option, recogniser.embedder.where, "a model that embeds other photos"
    if tests.split is None:
        unfit = "--pairs" if tests.kind == "dataset" else data.name
        for option in ("--identify", "--cluster"):
            yield option, unfit, "a data set whose split to take the photos of"
    if not tests.knows_people:
        yield "--map", data.name, "photos of people who are known"
    if tests.templates is not None:
        for option in ("--robustness", "--quality"):
            yield option, data.name, "pairs of photos"


def _measure_templates(
    recogniser: Recogniser, tests: TestSet, templates: TemplateSet, wanted: Wanted, flip: bool, progress: Progress
) -> Found:
    started = time.perf_counter()
    with progress(len(templates.photos), "embedding") as advance:
        rows = embed_rows(
            recogniser.embedder, tests.source, templates.photos, batch=wanted.batch, flip=flip, advance=advance
        )
    embedding_s = time.perf_counter() - started
    scored = score_templates(templates, rows, wanted.template_weights)
    return Found(
        scored=scored,
        verification=_verify(scored, tests, flip, wanted.carried),
        embedding_s=embedding_s,
        speed=_speed(rows.batch_ms, scored.num_photos, wanted.batch),
    )


def _verify(scored: ScoredPairs, tests: TestSet, flip: bool, carried: float | None) -> result.Verification:
    figures = add_intervals(measure(scored, flip), scored, by_identity=tests.knows_people)
    more: dict[str, object] = {}
    if carried is not None:
        more["carried_threshold"] = judge(scored, carried)
    if tests.groups:
        more["by_group"] = figures_by_group(scored, tests.groups)
    return figures.model_copy(update=more)


def _speed(batch_ms: list[float], num_photos: int, batch: int) -> result.Speed | None:
    return result.Speed(embedding_ms=median(batch_ms), num_photos=num_photos, batch=batch) if batch_ms else None
