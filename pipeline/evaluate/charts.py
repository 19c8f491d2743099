"""Charts as inline SVG: small, sharp at any size, coloured by the page's style sheet, so light and dark both work.

A chart is drawn on a canvas of `WIDTH` x `HEIGHT` units and scales with its column. Classes, not colours, stand in the
markup: `axis`, `grid`, `tick`, `label`, `line`, `area`, `hit` and the series' own name (`same`, `different`, `plain`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from markupsafe import Markup

WIDTH, HEIGHT = 480, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 20, 14, 46


@dataclass(frozen=True)
class Axis:
    """One axis: its range, where its ticks stand and what it measures."""

    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    label: str
    log: bool = False

    def place(self, value: float) -> float:
        """0 at the low end, 1 at the high end; values outside are clipped to the frame."""
        if self.log:
            value, low, high = math.log10(max(value, self.low)), math.log10(self.low), math.log10(self.high)
        else:
            low, high = self.low, self.high
        return min(max((value - low) / (high - low), 0.0), 1.0)


@dataclass(frozen=True)
class Series:
    """A named row of points; `name` is its class in the style sheet."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    step: bool = False
    filled: bool = False
    caption: str = ""
    """What hovering over the line shows."""


def roc_frame(num_different: int) -> tuple[Axis, Axis, Series]:
    """Axes of TAR over FAR, and the line of chance; FAR, logarithmic, ends at one false accept of so many pairs: below
    it nothing was measured."""
    x = log_axis(1.0 / max(num_different, 10), "false accept rate (FAR)")
    chance = np.geomspace(x.low, 1.0, 80).tolist()
    return x, percent_axis(0.0, 1.0, 0.2, "true accept rate, %"), Series("chance", chance, chance)


def linear_axis(values: Sequence[float], label: str, *, from_zero: bool = False) -> Axis:
    """An axis round the values with about five round ticks."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if from_zero:
        low = min(low, 0.0)
    if high <= low:
        low, high = low - (abs(low) or 1.0) * 0.5, high + (abs(high) or 1.0) * 0.5
    interval = _round_interval((high - low) / 5)
    first, last = math.floor(low / interval), math.ceil(high / interval)
    ticks = [(k * interval, number(k * interval)) for k in range(first, last + 1)]
    return Axis(first * interval, last * interval, ticks, label)


def log_axis(low: float, label: str) -> Axis:
    """A logarithmic axis from `low` to 1 with a tick at each decade."""
    decades = math.floor(-math.log10(low) + 1e-9)
    ticks = [(10.0**-k, f"1e-{k}" if k else "1") for k in range(decades, -1, -1)]
    return Axis(low, 1.0, ticks, label, log=True)


def percent_axis(low: float, high: float, interval: float, label: str) -> Axis:
    """An axis of shares, labelled in per cent; all arguments are shares."""
    count = round((high - low) / interval)
    ticks = [(low + k * interval, f"{100 * (low + k * interval):.0f}") for k in range(count + 1)]
    return Axis(low, high, ticks, label)


def number(value: float) -> str:
    """A short label: 12k, 3.5M, 0.25, 1e-5."""
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:.4g}M"
    if size >= 1e4:
        return f"{value / 1e3:.4g}k"
    if 0 < size < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:.4g}" if size > 1e-12 else "0"


def chart(title: str, x: Axis, y: Axis, series: Sequence[Series], marker: tuple[float, str] | None = None) -> Markup:
    """Draw series between two axes; `marker` is a vertical line at an x with its caption.

    `title` is what screen readers say.
    """
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">',
        f"<title>{escape(title)}</title>",
        *_grid(x, y),
    ]
    parts += [_draw(one, x, y) for one in series]
    if marker is not None:
        at = _x(x, marker[0])
        anchor, shift = ("end", -5) if x.place(marker[0]) > 0.6 else ("start", 5)
        parts.append(f'<line class="marker" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"/>')
        text = (
            f'<text class="tick" x="{at + shift:.1f}" y="{_TOP + 11}" text-anchor="{anchor}">{escape(marker[1])}</text>'
        )
        parts.append(text)
    parts.append("</svg>")
    return Markup("".join(parts))


def _grid(x: Axis, y: Axis) -> list[str]:
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    parts = []
    for value, text in y.ticks:
        at = _y(y, value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 7}" y="{at + 4.5:.1f}" text-anchor="end">{escape(text)}</text>')
    for value, text in x.ticks:
        at = _x(x, value)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{bottom}"/>')
        parts.append(f'<text class="tick" x="{at:.1f}" y="{bottom + 19}" text-anchor="middle">{escape(text)}</text>')
    middle = (_LEFT + right) / 2
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    parts.append(f'<text class="label" x="{middle:.0f}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x.label)}</text>')
    height = (_TOP + bottom) / 2
    turn = f"rotate(-90 13 {height:.0f})"
    parts.append(
        f'<text class="label" x="13" y="{height:.0f}" text-anchor="middle" transform="{turn}">{escape(y.label)}</text>'
    )
    return parts


def _draw(series: Series, x: Axis, y: Axis) -> str:
    """A path; points that would fall on the same tenth of a unit are drawn once."""
    points: list[tuple[float, float]] = []
    for one_x, one_y in zip(series.x, series.y, strict=True):
        point = (round(_x(x, one_x), 1), round(_y(y, one_y), 1))
        if series.step and points and point[0] != points[-1][0]:
            points.append((point[0], points[-1][1]))
        if not points or point != points[-1]:
            points.append(point)
    if not points:
        return ""
    line = "M" + "L".join(f"{a:g} {b:g}" for a, b in points)
    path = f'<path class="line {series.name}" d="{line}"/>'
    if series.caption:
        # a wide path that is not seen: a line of two units is hard to hit
        path = f'<g><title>{escape(series.caption)}</title><path class="hit" d="{line}"/>{path}</g>'
    if not series.filled:
        return path
    bottom = HEIGHT - _BOTTOM
    return f'<path class="area {series.name}" d="{line}L{points[-1][0]:g} {bottom}L{points[0][0]:g} {bottom}Z"/>{path}'


def _x(axis: Axis, value: float) -> float:
    return _LEFT + axis.place(value) * (WIDTH - _LEFT - _RIGHT)


def _y(axis: Axis, value: float) -> float:
    return HEIGHT - _BOTTOM - axis.place(value) * (HEIGHT - _TOP - _BOTTOM)


def _round_interval(value: float) -> float:
    """The least of 1, 2, 2.5, 5 times a power of ten that is at least `value`."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= value * (1 - 1e-9))
