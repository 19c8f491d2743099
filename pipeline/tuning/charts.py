"""Charts of a search as inline SVG: parallel coordinates of all trials, learning curves, the comparison seed by seed.

As in `pipeline.evaluate.charts`, the markup has classes and the style sheet the colours: `tone-0` (worst) to `tone-5`
(best) for a trial's rank, `failed` for one without a figure that counts, `best` for the best.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

from pipeline.evaluate.charts import Axis, Series, chart, linear_axis, number
from pipeline.tuning.comparison import Comparison, Side
from pipeline.tuning.results import SearchResults, Trial, Value

TONES = 6

_DECADES = 50
"""Positive numbers were searched over decades only where the largest is more than this many times the least."""
_FEW = 6
"""Up to so many different numbers, some of them taken more than once, are a choice: each is a tick."""
_TOP, _BOTTOM, _MARGIN, _HEIGHT = 62, 330, 84, 366
_AXIS_WIDTH, _LEAST_WIDTH = 128, 980
_CHARACTER = 6.9


def shown(value: Value | None) -> str:
    """A setting's value for people: four digits of a number, `true` and `null` as in YAML, a text as it is."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "null"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def decimals(figures: Sequence[float]) -> int:
    """Decimals that tell figures apart: three digits of their range."""
    span = max(figures) - min(figures) if figures else 0.0
    return min(max(2 - math.floor(math.log10(span)), 0), 6) if span > 0 else 4


def tones(results: SearchResults) -> Mapping[str, str]:
    """The class of each trial of the search, by its id; trials without a figure that counts are missing."""
    scored = results.scored()
    last = max(len(scored) - 1, 1)
    return {trial.id: f"tone-{round((TONES - 1) * (1 - rank / last))}" for rank, (trial, _) in enumerate(scored)}


@dataclass(frozen=True)
class Coordinate:
    """A key's vertical axis."""

    places: Mapping[str, float | None]
    """Trial's id: 0 at the bottom, 1 at the top, None where the key did not apply."""
    ticks: Sequence[tuple[float, str]]
    """Place and text."""


def coordinate(key: str, trials: Sequence[Trial]) -> Coordinate:
    """Lay out one key: numbers on a linear axis, on a logarithmic one where they span decades, all else by name.

    Trials with the same name are spread over its band in the order given, so that their lines can be told apart.
    """
    values = {trial.id: trial.setting[key] for trial in trials if key in trial.setting}
    places: dict[str, float | None] = dict.fromkeys((trial.id for trial in trials), None)
    if values and all(isinstance(value, int | float) and not isinstance(value, bool) for value in values.values()):
        numbers = {name: float(value) for name, value in values.items()}
        axis = _number_axis(sorted(numbers.values()))
        places |= {name: axis.place(value) for name, value in numbers.items()}
        return Coordinate(places, [(axis.place(value), text) for value, text in axis.ticks])
    texts = {name: shown(value) for name, value in values.items()}
    names = sorted(set(texts.values()))
    for band, name in enumerate(names):
        members = [trial for trial, text in texts.items() if text == name]
        for number_, trial in enumerate(members):
            spread = (number_ + 1) / (len(members) + 1) - 0.5
            places[trial] = (len(names) - 1 - band + 0.5 - 0.6 * spread) / len(names)
    return Coordinate(places, [((len(names) - 1 - band + 0.5) / len(names), name) for band, name in enumerate(names)])


def parallel_coordinates(results: SearchResults) -> Markup:
    """Every trial of the search as a line through its setting, to its objective at the right."""
    summary, tone = results.summary, tones(results)
    scored = results.scored()
    others = [trial for trial in results.trials if trial.phase == "search" and trial.id not in tone]
    trials = [trial for trial, _ in scored] + others
    coordinates = [coordinate(key, trials) for key in summary.keys]
    objective = linear_axis([value for _, value in scored], summary.metric)
    names = [*summary.keys, summary.metric]
    width = max(_LEAST_WIDTH, 2 * _MARGIN + _AXIS_WIDTH * (len(names) - 1))
    interval = (width - 2 * _MARGIN) / (len(names) - 1) if len(names) > 1 else 0.0
    across = [_MARGIN + interval * place for place in range(len(names))]
    figures = {trial.id: objective.place(value) for trial, value in scored}

    def line(trial: Trial) -> str:
        places = [one.places[trial.id] for one in coordinates]
        points = [(x, _down(place)) for x, place in zip(across, places, strict=False)]
        if trial.id in figures:
            points.append((across[-1], _down(figures[trial.id])))
        if not points:
            return ""
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        name = "best" if trial.id == summary.best_trial else tone.get(trial.id, "failed")
        return (
            f'<g class="trial"><title>{escape(describe(trial, summary.metric))}</title>'
            f'<path class="hit" d="{path}"/><path class="line {name}" d="{path}"/></g>'
        )

    gaps = [any(place is None for place in one.places.values()) for one in coordinates]
    ticks = [*(one.ticks for one in coordinates), [(objective.place(value), text) for value, text in objective.ticks]]
    title = "All trials: their settings and what they reached"
    parts = [
        f'<svg class="chart wide" viewBox="0 0 {width} {_HEIGHT}" style="min-width:{width * 0.8:.0f}px" role="img"'
        f' aria-label="{title}">',
        *(_axis_line(x) for x in across),
        # the best on top
        *(line(trial) for trial in reversed(trials)),
        *(
            _axis_texts(name, x, texts, gap, interval)
            for name, x, texts, gap in zip(names, across, ticks, [*gaps, False], strict=True)
        ),
        "</svg>",
    ]
    return Markup("".join(parts))


def learning_curves(results: SearchResults) -> tuple[Markup, bool] | None:
    """The metric over photos shown, a line for each trial of the search; None where no trial reported it.

    Returns:
        the chart, and whether its frame leaves out figures far off the rest, which are drawn at its edge.
    """
    summary, tone = results.summary, tones(results)
    curves = []
    for trial in results.trials:
        points = [(report.samples, report.figures.get(summary.metric, math.nan)) for report in trial.reports]
        points = [point for point in points if math.isfinite(point[1])]
        if points and trial.phase == "search":
            curves.append((trial, points))
    if not curves:
        return None
    figures = sorted(figure for _, points in curves for _, figure in points)
    framed = _without_far_ones(figures)
    x = linear_axis([0.0, *(float(samples) for _, points in curves for samples, _ in points)], "photos shown")
    y = linear_axis(framed, summary.metric)
    # the best on top, failures below all
    order = {trial.id: place for place, (trial, _) in enumerate(results.scored())}
    curves.sort(key=lambda curve: order.get(curve[0].id, len(order)), reverse=True)
    series = []
    for trial, points in curves:
        name = "best" if trial.id == summary.best_trial else tone.get(trial.id, "failed")
        xs, ys = [float(samples) for samples, _ in points], [figure for _, figure in points]
        if len(points) == 1:  # a line of one point would not be seen
            xs, ys = [max(xs[0] - x.high / 60, 0.0), *xs], [*ys, *ys]
        series.append(Series(name, xs, ys, caption=describe(trial, summary.metric)))
    return chart(f"{summary.metric} of every trial", x, y, series), len(framed) < len(figures)


def seed_dots(comparison: Comparison, metric: str) -> Markup:
    """Each rerun as a dot, the default's row above the best setting's, with a bar at each mean and its deviation."""
    width, height, left, right = 480, 168, 70, 26
    rows: list[tuple[str, Side, int]] = [("default", comparison.default, 34), ("best", comparison.best, 88)]
    reach = [side.mean + sign * (side.std or 0.0) for _, side, _ in rows for sign in (-1, 1)]
    axis = linear_axis([*reach, *(figure for _, side, _ in rows for _, figure in side.figures)], metric)

    def x(value: float) -> float:
        return left + axis.place(value) * (width - left - right)

    parts = [
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="Default and best, seed by seed">'
    ]
    for value, text in axis.ticks:
        parts.append(f'<line class="grid" x1="{x(value):.1f}" x2="{x(value):.1f}" y1="8" y2="118"/>')
        parts.append(f'<text class="tick" x="{x(value):.1f}" y="137" text-anchor="middle">{escape(text)}</text>')
    parts.append(
        f'<text class="label" x="{(left + width - right) / 2}" y="160" text-anchor="middle">{escape(metric)}</text>'
    )
    for name, side, y in rows:
        parts.append(f'<text class="tick" x="{left - 10}" y="{y + 4.5}" text-anchor="end">{name}</text>')
        deviation = side.std or 0.0
        low, high = x(side.mean - deviation), x(side.mean + deviation)
        parts.append(f'<line class="spread {name}" x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}"/>')
        parts.append(
            f'<line class="mean {name}" x1="{x(side.mean):.1f}" x2="{x(side.mean):.1f}" y1="{y - 15}" y2="{y + 15}"/>'
        )
        for seed, figure in side.figures:
            title = f"<title>seed {seed}: {figure:.6g}</title>"
            parts.append(f'<circle class="dot {name}" cx="{x(figure):.1f}" cy="{y}" r="5">{title}</circle>')
    return Markup("".join([*parts, "</svg>"]))


def describe(trial: Trial, metric: str) -> str:
    """A trial in a few lines: id, state, figure, setting."""
    figure = trial.objective(metric)
    first = f"{trial.id}, {trial.state}" + (f": {metric} {figure:.6g}" if figure is not None else "")
    lines = [first, *([trial.reason] if trial.reason else [])]
    return "\n".join([*lines, *(f"{key} = {shown(value)}" for key, value in trial.setting.items())])


def _number_axis(numbers: Sequence[float]) -> Axis:
    """An axis for the numbers that a key took, ascending, repeated ones included."""
    low, high, different = numbers[0], numbers[-1], sorted(set(numbers))
    log = low > 0 and high / low > _DECADES and _stand_better_on_logarithms(numbers)
    if len(different) == 1:
        return Axis(low - 1, low + 1, [(low, number(low))], "")
    if len(different) <= _FEW and len(different) < len(numbers):
        return Axis(low, high, [(value, number(value)) for value in different], "", log)
    if not log:
        return linear_axis(different, "")
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = [step * 10.0**power for power in range(first, last + 1) for step in (1, 2, 5)]
    low = max(step for step in steps if step <= low * (1 + 1e-9))
    high = min(step for step in steps if step >= high * (1 - 1e-9))
    # each decade, each second one where there are many
    every = 1 + (last - first) // 8
    ticks = [10.0**power for power in range(first, last + 1, every) if low * 0.99 <= 10.0**power <= high * 1.01]
    return Axis(low, high, [(value, number(value)) for value in ticks], "", log=True)


def _stand_better_on_logarithms(numbers: Sequence[float]) -> bool:
    """Whether the median is nearer to the middle of a logarithmic axis than to that of a linear one.

    A hundred numbers drawn evenly from 0 to 1 span decades, too, but crowd at the end of a logarithmic axis.
    """
    low, median, high = numbers[0], numbers[len(numbers) // 2], numbers[-1]
    linear = (median - low) / (high - low)
    logarithmic = math.log(median / low) / math.log(high / low)
    return abs(logarithmic - 0.5) <= abs(linear - 0.5)


def _without_far_ones(figures: Sequence[float]) -> Sequence[float]:
    """Sorted figures less those further from the middle half than five times its width (Tukey's fences, set wide)."""
    lower, upper = figures[len(figures) // 4], figures[(3 * len(figures)) // 4]
    reach = 5 * (upper - lower)
    return [figure for figure in figures if lower - reach <= figure <= upper + reach] if reach > 0 else figures


def _down(place: float | None) -> float:
    """Where a place stands on the canvas; keys that did not apply have one below the axis."""
    return _BOTTOM + 24 if place is None else _BOTTOM - place * (_BOTTOM - _TOP)


def _axis_line(x: float) -> str:
    return f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_BOTTOM}"/>'


def _axis_texts(name: str, x: float, ticks: Sequence[tuple[float, str]], gap: bool, interval: float) -> str:
    """Name above the axis in two lines, ticks at its left; a tick that would cover its neighbour is left out."""
    beginning, dot, end = name.rpartition(".")
    room = max(8, int((interval or _AXIS_WIDTH) / _CHARACTER))
    parts = [f"<g><title>{escape(name)}</title>"]
    prefix = beginning + dot
    prefix = prefix if len(prefix) <= room else "…" + prefix[1 - room :]
    end = end if len(end) <= room else end[: room - 1] + "…"
    for line, short, kind in ((24, prefix, "prefix"), (42, end, "name")):
        parts.append(f'<text class="{kind}" x="{x:.1f}" y="{line}" text-anchor="middle">{escape(short)}</text>')
    parts.append("</g>")
    free = math.inf
    for place, text in sorted(ticks):
        y = _down(place)
        if y <= free:
            free = y - 13
            short = text if len(text) <= 14 else text[:13] + "…"
            parts.append(
                f'<text class="tick" x="{x - 6:.1f}" y="{y + 4.5:.1f}" text-anchor="end">{escape(short)}</text>'
            )
    if gap:
        parts.append(f'<text class="tick" x="{x - 6:.1f}" y="{_down(None) + 4.5}" text-anchor="end">not used</text>')
    return "".join(parts)
