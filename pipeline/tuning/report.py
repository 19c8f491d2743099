"""The HTML report of a search: one file that opens without a network, in light and dark, on a phone and on paper."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from pipeline.evaluate.charts import number
from pipeline.evaluate.page import render_page
from pipeline.tuning.charts import decimals, learning_curves, parallel_coordinates, seed_dots, shown, tones
from pipeline.tuning.comparison import Side, compare, reruns
from pipeline.tuning.importance import Importances, key_importances
from pipeline.tuning.results import Phase, SearchResults, Trial

_UNUSED = "not used"
"""Stands where a key did not apply."""

_SORT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
      const compare = (left, right) => {
        const [a, b] = [left, right].map(row => row.cells[column].dataset.value);
        if (a === "" || b === "") return (a === "") - (b === "");
        return sign * (a - b || a.localeCompare(b, undefined, {numeric: true}));
      };
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
    });
  });
}
"""
"""Makes the heads of tables buttons that sort; without it the tables stay as they are."""


@dataclass(frozen=True)
class Cell:
    """One cell of the table of trials."""

    text: str
    value: str
    """What sorts it: a number, or a text; empty for what comes last either way."""


@dataclass(frozen=True)
class SettingRow:
    """One key in the recipe and in the best setting."""

    key: str
    default: str
    best: str
    is_changed: bool


@dataclass(frozen=True)
class Bar:
    """One key's importance as lengths, in per cent of the room there is."""

    key: str
    text: str
    is_shown: bool
    length: float
    low: float
    """Where the whisker of two standard errors begins."""
    high: float


def render_report(results: SearchResults) -> str:
    """The page of a search, from its results alone. Every text is escaped, settings and reasons included.

    Raises:
        ValueError: the search names a best trial that is not among its trials.
    """
    summary, scored = results.summary, results.scored()
    best = results.best()
    if summary.best_trial is not None and best is None:
        raise ValueError(f"the best trial {summary.best_trial!r} is not among the trials")
    comparison, of_best, of_default = compare(results), reruns(results, "best"), reruns(results, "default")
    importances = key_importances(results)
    searched = [trial for trial in results.trials if trial.phase == "search"]
    curves = learning_curves(results)
    return render_page(
        "pipeline.tuning",
        "report.html.jinja",
        script=_SORT,
        summary=summary,
        best=best,
        best_figure=None if best is None else best.objective(summary.metric),
        comparison=comparison,
        of_best=of_best,
        places=_headline_decimals(of_best, of_default),
        dots=None if comparison is None else seed_dots(comparison, summary.metric),
        notes=_notes(results, comparison is not None and comparison.interval is None),
        num_searched=len(searched),
        num_scored=len(scored),
        states=Counter(trial.state for trial in searched),
        duration=duration(summary.seconds),
        setting=[] if best is None else _setting(results, best),
        parallel=parallel_coordinates(results),
        curves=None if curves is None else curves[0],
        curves_are_cut=curves is not None and curves[1],
        importances=importances,
        bars=_bars(importances),
        columns=_columns(results),
        rows=_rows(results),
        failures=[trial for trial in results.trials if trial.state == "failed"],
    )


def duration(seconds: float) -> str:
    """A time span in its two largest units: `2 h 5 min`, `4 min 12 s`, `3.2 s`."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def _headline_decimals(*sides: Side | None) -> int:
    """Two digits of the smallest spread, or four decimals."""
    spreads = [side.std for side in sides if side is not None and side.std]
    return min(max(1 - math.floor(math.log10(min(spreads))), 0), 6) if spreads else 4


def _notes(results: SearchResults, has_no_interval: bool) -> list[str]:
    """What a reader must know before trusting the headline."""
    notes = []
    sides: tuple[tuple[Phase, str], ...] = (("best", "the best setting"), ("default", "the recipe's default"))
    for phase, name in sides:
        num_run = sum(trial.phase == phase for trial in results.trials)
        lost = num_run - len(results.scored(phase))
        if lost and lost == num_run:
            notes.append(f"Of {name}, no rerun gave a figure ({num_run} tried).")
        elif lost:
            notes.append(
                f"{lost} of {num_run} reruns of {name} gave no figure; the mean is of the others, which flatters it."
            )
    if has_no_interval:
        notes.append("One figure on a side has no spread: run both with two seeds or more to see whether they differ.")
    return notes


def _setting(results: SearchResults, best: Trial) -> list[SettingRow]:
    rows = []
    for key in results.summary.keys:
        default = shown(results.summary.default[key]) if key in results.summary.default else "not set"
        value = shown(best.setting[key]) if key in best.setting else _UNUSED
        rows.append(SettingRow(key, default, value, key in best.setting and value != default))
    return rows


def _bars(importances: Importances) -> list[Bar]:
    full = max([1.0, *(one.mean + 2 * one.error for one in importances.keys)])

    def place(share: float) -> float:
        return 100 * min(max(share / full, 0.0), 1.0)

    return [
        Bar(
            key=one.key,
            text=f"{round(100 * one.mean)} ± {round(100 * one.error)} %".replace("-", "−"),
            is_shown=one.is_shown,
            length=place(one.mean),
            low=place(one.mean - 2 * one.error),
            high=place(one.mean + 2 * one.error),
        )
        for one in importances.keys
    ]


def _columns(results: SearchResults) -> list[str]:
    return ["trial", results.summary.metric, "state", *results.summary.keys, "photos", "epochs", "time", "seed"]


def _rows(results: SearchResults) -> list[tuple[Trial, str, list[Cell]]]:
    """Each trial of the search with its class and its cells: best first, then those without a figure."""
    summary, tone, scored = results.summary, tones(results), results.scored()
    places = decimals([value for _, value in scored])
    trials = [trial for trial, _ in scored]
    trials += [trial for trial in results.trials if trial.phase == "search" and trial.id not in tone]
    rows = []
    for trial in trials:
        figure = trial.objective(summary.metric)
        cells = [
            Cell(trial.id, trial.id),
            _number_cell(None) if figure is None else _number_cell(figure, f"{figure:.{places}f}"),
            Cell(trial.state, trial.state),
        ]
        for key in summary.keys:
            value = trial.setting.get(key)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            sort = "" if value is None else repr(value) if is_number else shown(value)
            cells.append(Cell(_UNUSED if value is None else shown(value), sort))
        if trial.reports:
            last = trial.reports[-1]
            cells.append(_number_cell(last.samples, number(last.samples)))
            cells.append(_number_cell(last.epoch, f"{last.epoch:.3g}"))
            cells.append(_number_cell(last.seconds, duration(last.seconds)))
        else:
            cells += [_number_cell(None)] * 3
        cells.append(_number_cell(trial.seed, str(trial.seed)))
        rows.append((trial, tone.get(trial.id, "failed"), cells))
    return rows


def _number_cell(value: float | None, text: str = "–") -> Cell:
    return Cell(text, "" if value is None else repr(value))
