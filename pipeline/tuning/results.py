"""What a search leaves behind as data: every report of every trial, in `results.parquet`, a row each.

The file is for pandas, DuckDB and the like as much as for us: a setting is a column `setting/KEY`, a figure a column of
its own name. The search itself (`SearchSummary`) stands as JSON in the schema's metadata under `facemill.search`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.atomic_write import write_atomically
from pipeline.config.errors import UserError

Value = float | int | bool | str
"""What a searched key can be set to; for a bundle of keys it is the bundle's name."""
Phase = Literal["search", "default", "best"]
State = Literal["finished", "stopped", "failed", "unfinished"]
Direction = Literal["max", "min"]

FORMAT_VERSION = 1

_SUMMARY_KEY = b"facemill.search"
_VALUES_KEY = b"facemill.values"
_SETTING = "setting/"
_TRIAL_COLUMNS = {"trial": pa.string(), "phase": pa.string(), "state": pa.string(), "reason": pa.string()}
_REPORT_COLUMNS = {"step": pa.int64(), "samples": pa.int64(), "epoch": pa.float64(), "seconds": pa.float64()}
_FIXED = {**_TRIAL_COLUMNS, "seed": pa.int64(), **_REPORT_COLUMNS}
_EXACT = 2**53
"""Up to here a float holds every integer."""


@dataclass(frozen=True)
class SearchSummary:
    """What was searched, how, and what came out on top."""

    name: str
    metric: str
    """The figure that decides, as trials report it: `val/score`."""
    direction: Direction
    """Whether a larger or a smaller `metric` is better."""
    recipe: str
    """The configuration that the trials vary, as the user named it."""
    keys: tuple[str, ...]
    """Dotted configuration keys, or names of bundles of them, that were searched."""
    default: Mapping[str, Value | None]
    """What the recipe itself has for each key; a key it does not set is missing."""
    best_trial: str | None
    """Id of the best trial of the search; None when no trial gave a figure."""
    seeds: tuple[int, ...]
    """With which the default and the best setting were run again."""
    versions: Mapping[str, str]
    """Of facemill, Ray, torch."""
    command: str
    """That repeats the search."""
    started: str
    """ISO 8601, the first time."""
    seconds: float
    """From then to the end; what lay between a death and `--resume` counts."""


@dataclass(frozen=True)
class Report:
    """What a trial said of itself once."""

    step: int
    samples: int
    """Photos shown so far."""
    epoch: float
    seconds: float
    """Since the trial's start."""
    figures: Mapping[str, float]
    """By name; the search's metric among them."""


@dataclass(frozen=True)
class Trial:
    """One training run of a search."""

    id: str
    phase: Phase
    """`search`, or a rerun after it with another seed: of the recipe's `default` or of the `best` setting."""
    state: State
    """`stopped` is early, by the scheduler; `unfinished` is what a search that ended too soon left running."""
    reason: str
    """Why it failed, in one line; empty for the others."""
    setting: Mapping[str, Value]
    """Value of each searched key that applied; one that depends on another and did not apply is missing."""
    seed: int
    reports: tuple[Report, ...]

    def objective(self, metric: str) -> float | None:
        """`metric` in the last report, or None where the trial never reported it or it is not finite.

        The last and not the best report: the best of many noisy ones flatters whoever reported most often.
        """
        if not self.reports:
            return None
        value = self.reports[-1].figures.get(metric)
        return value if value is not None and math.isfinite(value) else None


def scored(trials: Iterable[Trial], metric: str, direction: Direction) -> list[tuple[Trial, float]]:
    """All trials that did not fail and gave a figure, with their objectives, best first."""
    found = [
        (trial, objective)
        for trial in trials
        if trial.state != "failed" and (objective := trial.objective(metric)) is not None
    ]
    return sorted(found, key=lambda pair: pair[1], reverse=direction == "max")


@dataclass(frozen=True)
class SearchResults:
    """A search and its trials, reruns included, in the order in which they were started."""

    summary: SearchSummary
    trials: tuple[Trial, ...]

    def scored(self, phase: Phase = "search") -> list[tuple[Trial, float]]:
        """See `scored`; of a phase."""
        of_phase = [trial for trial in self.trials if trial.phase == phase]
        return scored(of_phase, self.summary.metric, self.summary.direction)

    def best(self) -> Trial | None:
        """The trial that the summary names as the best."""
        return next((trial for trial in self.trials if trial.id == self.summary.best_trial), None)


def write_results(results: SearchResults, path: Path) -> None:
    """Write `results.parquet`: one row a report, and one for a trial that never reported.

    Columns: `trial`, `phase`, `state`, `reason`, `seed`, `step`, `samples`, `epoch`, `seconds`, then `setting/KEY` and
    the figures by name. A setting's column holds numbers or booleans where all its values are; texts as they are;
    values of several kinds as JSON. Null is a key that did not apply, or a figure that was not reported.

    Raises:
        ValueError: two trials share an id, or a figure's name is a column's already.
        OSError: the system refuses.
    """
    ids = [trial.id for trial in results.trials]
    if len(set(ids)) < len(ids):
        raise ValueError("two trials share an id")
    rows = [(trial, report) for trial in results.trials for report in trial.reports or (None,)]
    arrays, fields = [], []
    for name, type_ in _FIXED.items():
        if name in _REPORT_COLUMNS:
            values = [None if report is None else getattr(report, name) for _, report in rows]
        else:
            values = [getattr(trial, "id" if name == "trial" else name) for trial, _ in rows]
        arrays.append(pa.array(values, type_))
        fields.append(pa.field(name, type_))
    for key in _names((trial.setting for trial in results.trials), results.summary.keys):
        array, field = _setting_column(key, [trial.setting.get(key) for trial, _ in rows])
        arrays.append(array)
        fields.append(field)
    for name in _names((report.figures for trial in results.trials for report in trial.reports), ()):
        if name in _FIXED or name.startswith(_SETTING):
            raise ValueError(f"figure {name!r}: the name of another column")
        arrays.append(
            pa.array([None if report is None else report.figures.get(name) for _, report in rows], pa.float64())
        )
        fields.append(pa.field(name, pa.float64()))
    summary = {"format_version": FORMAT_VERSION, **asdict(results.summary)}
    table = pa.Table.from_arrays(arrays, schema=pa.schema(fields, {_SUMMARY_KEY: json.dumps(summary)}))
    write_atomically(path, lambda file: pq.write_table(table, file))


def read_results(path: Path) -> SearchResults:
    """Read what `write_results` wrote.

    Raises:
        UserError: the file cannot be read or is not one of a search.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(path, f"unreadable ({str(error).splitlines()[0]})", "the results.parquet of a search") from None
    summary = json.loads((table.schema.metadata or {}).get(_SUMMARY_KEY, b"{}"))
    if summary.pop("format_version", None) != FORMAT_VERSION:
        raise UserError(path, "not the results of a search by this version", "a file that launch/tune.py wrote")
    as_json = {field.name for field in table.schema if (field.metadata or {}).get(_VALUES_KEY) == b"json"}
    trials: dict[str, Trial] = {}
    reports: dict[str, list[Report]] = {}
    for row in table.to_pylist():
        name, seen = row["trial"], {key: value for key, value in row.items() if value is not None and key not in _FIXED}
        if name not in trials:
            setting = {
                key.removeprefix(_SETTING): json.loads(value) if key in as_json else value
                for key, value in seen.items()
                if key.startswith(_SETTING)
            }
            of_trial = {column: row[column] for column in ("phase", "state", "reason", "seed")}
            trials[name], reports[name] = Trial(id=name, setting=setting, reports=(), **of_trial), []
        if row["step"] is not None:
            figures = {key: value for key, value in seen.items() if not key.startswith(_SETTING)}
            reports[name].append(Report(figures=figures, **{column: row[column] for column in _REPORT_COLUMNS}))
    whole = (Trial(**{**vars(trial), "reports": tuple(reports[name])}) for name, trial in trials.items())
    lists = {name: tuple(summary[name]) for name in ("keys", "seeds")}
    return SearchResults(SearchSummary(**{**summary, **lists}), tuple(whole))


def _names(mappings: Iterable[Mapping[str, Any]], first: Sequence[str]) -> list[str]:
    """Keys of all mappings in order of appearance, those of `first` before them."""
    return list(dict.fromkeys([*first, *(key for mapping in mappings for key in mapping)]))


def _setting_column(key: str, values: Sequence[Value | None]) -> tuple[pa.Array, pa.Field]:
    """The narrowest column that gives each value back as it was."""
    present = [value for value in values if value is not None]
    kinds = {next(kind for kind in (bool, int, float, str) if isinstance(value, kind)) for value in present}
    numbers = cast("list[int | float]", present)
    metadata = None
    if kinds == {bool}:
        type_ = pa.bool_()
    elif kinds == {int} and all(-(2**63) <= value < 2**63 for value in numbers):
        type_ = pa.int64()
    elif float in kinds and kinds <= {int, float} and all(abs(v) <= _EXACT for v in numbers if isinstance(v, int)):
        type_ = pa.float64()
    else:
        type_ = pa.string()
        if not kinds <= {str}:
            values = [None if value is None else json.dumps(value) for value in values]
            metadata = {_VALUES_KEY: b"json"}
    return pa.array(values, type_), pa.field(_SETTING + key, type_, metadata=metadata)
