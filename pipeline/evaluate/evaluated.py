"""Folders that `launch/evaluate.py` wrote, read back to be compared; and what to call their models and test sets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath

from pydantic import ValidationError

from pipeline.config.errors import UserError
from pipeline.evaluate.result import SCHEMA_VERSION, Evaluation, Model
from pipeline.evaluate.scores import Scores, read_scores
from pipeline.input_spec import InputSpec

_EXPECTED = "a folder that launch/evaluate.py wrote"


@dataclass(frozen=True)
class Evaluated:
    """One model on one test set."""

    folder: Path
    evaluation: Evaluation
    scores: Scores

    @property
    def model_key(self) -> tuple[object, ...]:
        """What tells models apart: the same for evaluations of one model on several sets.

        A file or a checkpoint is known by its content, wherever it lies; a module may hold several functions.
        """
        model = self.evaluation.model
        return (
            model.kind,
            model.sha256,
            model.checkpoint if model.kind == "python" else None,
            model.weights,
            None if model.input is None else model.input.model_dump_json(),
            model.output,
            self.evaluation.verification.flip,
        )


def open_folder(folder: Path) -> Evaluated:
    """Read one evaluation.

    Raises:
        UserError: not such a folder, files of another version, or files that do not belong together.
    """
    path = folder / "evaluation.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content.get("schema_version") if isinstance(content, dict) else None
    except OSError as error:
        raise UserError(folder, f"no evaluation.json in it ({error.strerror})", _EXPECTED) from None
    except ValueError as error:
        raise UserError(path, f"not JSON ({str(error).splitlines()[0]})", _EXPECTED, "evaluate again") from None
    if version != SCHEMA_VERSION:
        raise UserError(path, f"schema version {version}", f"version {SCHEMA_VERSION}", "evaluate again")
    try:
        evaluation = Evaluation.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(path, f"{place}: {first['msg']}", _EXPECTED, "evaluate again") from None
    if evaluation.verification.unit == "template":
        raise UserError(
            folder, "pairs of templates", "pairs of photos: those of templates are not compared", "leave it out"
        )
    file = folder / "scores.parquet"
    scores = read_scores(file)
    if hashlib.sha256(file.read_bytes()).hexdigest() != evaluation.scores_sha256:
        found = "scores.parquet and evaluation.json are of two evaluations"
        raise UserError(folder, found, "files of one", "evaluate again")
    return Evaluated(folder, evaluation, scores)


def open_folders(folders: Sequence[Path]) -> list[Evaluated]:
    """Read evaluations that are to be compared.

    Raises:
        UserError: as `open_folder`; a folder twice, a model twice on a set, or a model on sets of its own only.
    """
    seen: dict[Path, Path] = {}
    for folder in folders:
        if folder.resolve() in seen:
            raise UserError(folder, f"given twice, as {seen[folder.resolve()]}", "each folder once")
        seen[folder.resolve()] = folder
    opened = [open_folder(folder) for folder in folders]
    places: dict[tuple[object, ...], Evaluated] = {}
    for one in opened:
        first = places.setdefault((one.model_key, one.scores.pairs_sha256), one)
        if first is not one:
            found = f"the same model on the same pairs as {first.folder}"
            raise UserError(one.folder, found, "each model once a test set", "leave one out")
    if len({one.model_key for one in opened}) > 1:
        for one in opened:
            own = {other.scores.pairs_sha256 for other in opened if other.model_key == one.model_key}
            if not any(o.scores.pairs_sha256 in own for o in opened if o.model_key != one.model_key):
                found = f"its model and the other models were tested on different pairs (here {_short(one)})"
                other = next(o for o in opened if o.model_key != one.model_key)
                raise UserError(
                    one.folder,
                    found,
                    f"the pairs of {other.folder} ({_short(other)})",
                    f"--pairs {other.evaluation.data.pairs}",
                )
    return opened


def name_models(models: Sequence[Evaluated]) -> list[str]:
    """A short name for each model: its directory's, with what it takes to tell it from the others.

    Args:
        models: one evaluation of each.
    """

    def directory(one: Evaluated) -> str:
        parts = [part for part in PurePath(one.evaluation.model.checkpoint).parts if part not in ("/", ".")]
        while len(parts) > 1 and (parts[-1].startswith("step-") or parts[-1] in ("checkpoints", "best", "latest")):
            parts.pop()
        return parts[-1] if parts else one.evaluation.model.checkpoint

    return _tell_apart(
        models,
        [
            directory,
            lambda one: _step(one.evaluation.model),
            lambda one: "moving average" if one.evaluation.model.weights == "ema" else "raw weights",
            lambda one: "with mirror image" if one.evaluation.verification.flip else "without mirror image",
            lambda one: one.evaluation.model.checkpoint,
            lambda one: f"sha256 {(one.evaluation.model.sha256 or '')[:8]}",
            *(partial(_describe_input, describe) for describe in _INPUT_ASPECTS),
            lambda one: (
                "one output" if one.evaluation.model.output is None else f"output {one.evaluation.model.output}"
            ),
            lambda one: str(one.folder),
        ],
    )


def name_sets(sets: Sequence[Evaluated]) -> list[str]:
    """A short name for each test set: that of its photos, with what it takes to tell it from the others.

    Args:
        sets: one evaluation on each.
    """
    return _tell_apart(
        sets,
        [
            lambda one: (
                (PurePath(one.evaluation.data.path).name.removesuffix(".bin") or one.evaluation.data.path)
                + (f" ({one.evaluation.data.split})" if one.evaluation.data.split else "")
            ),
            lambda one: PurePath(one.evaluation.data.pairs).name,
            lambda one: one.evaluation.data.path,
            _short,
        ],
    )


def _tell_apart(things: Sequence[Evaluated], aspects: Sequence[Callable[[Evaluated], str]]) -> list[str]:
    """The first aspect of each thing; of those that share it, further ones, until all differ."""
    names = [aspects[0](one) for one in things]
    for aspect in aspects[1:]:
        described = [aspect(one) for one in things]
        alike = [[place for place, other in enumerate(names) if other == name] for name in names]
        names = [
            f"{name}, {described[place]}" if len({described[other] for other in alike[place]}) > 1 else name
            for place, name in enumerate(names)
        ]
    return names


def _step(model: Model) -> str:
    return "no step" if model.step is None else f"step {model.step:,}"


def _describe_input(describe: Callable[[InputSpec], str], one: Evaluated) -> str:
    spec = one.evaluation.model.input
    return "pixels" if spec is None else describe(spec)


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


_INPUT_ASPECTS: list[Callable[[InputSpec], str]] = [
    lambda spec: f"{spec.height_px}x{spec.width_px} px",
    lambda spec: spec.layout,
    lambda spec: spec.colour,
    lambda spec: spec.dtype,
    lambda spec: f"less {_numbers(spec.mean)}",
    lambda spec: f"divided by {_numbers(spec.std)}",
    lambda spec: "template not known" if spec.template is None else f"template from {_numbers(spec.template[:2])}",
]
"""What was fed to a model, a field each; of a template its first point, for ten numbers are no name."""


def _short(one: Evaluated) -> str:
    return f"sha256 {one.scores.pairs_sha256[:8]}"
