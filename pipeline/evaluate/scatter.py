"""Scatter charts of many groups as inline SVG: a colour and a shape for each, and a legend that shows both."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from markupsafe import Markup

WIDTH, HEIGHT = 480, 400

_MARGIN = 14
_GOLDEN_DEGREES = 137.508
"""The golden angle: however many hues are taken, each is far from those before it."""
_SHAPES = (
    "M-4.2 0a4.2 4.2 0 1 0 8.4 0a4.2 4.2 0 1 0-8.4 0Z",
    "M-3.8-3.8H3.8V3.8H-3.8Z",
    "M0-5L4.8 3.6H-4.8Z",
    "M0-5.4L5.4 0L0 5.4L-5.4 0Z",
    "M0 5L4.8-3.6H-4.8Z",
    "M-1.8-5H1.8V-1.8H5V1.8H1.8V5H-1.8V1.8H-5V-1.8H-1.8Z",
)
"""Circle, square, triangle, diamond, triangle, cross, for who does not tell the hues apart.

Six, because hues come back to about the same after 8, 13 and 21 steps, which are no multiples of it.
"""


def scatter(
    title: str, x: Sequence[float], y: Sequence[float], group: Sequence[int], captions: Sequence[str]
) -> Markup:
    """Draw points without axes: on a map only neighbourhood means something.

    Args:
        title: what screen readers say.
        x, y: of each point, larger y upwards; each direction is stretched to the frame.
        group: a number from 0.
        captions: what hovering over each point shows.
    """
    parts = [
        f'<svg class="chart scatter" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">',
        f"<title>{escape(title)}</title>",
    ]
    places = zip(_spread(x, WIDTH), _spread([-value for value in y], HEIGHT), strict=True)
    for (left, top), number, caption in zip(places, group, captions, strict=True):
        mark = _mark(number, f"translate({left:.1f} {top:.1f})")
        parts.append(f"<g><title>{escape(caption)}</title>{mark}</g>")
    parts.append("</svg>")
    return Markup("".join(parts))


def legend(names: Sequence[str]) -> Markup:
    """The colour, shape and name of each group."""
    items = [
        f'<span><svg viewBox="-6 -6 12 12" aria-hidden="true">{_mark(number, "")}</svg>{escape(name)}</span>'
        for number, name in enumerate(names)
    ]
    return Markup('<div class="key people">' + "".join(items) + "</div>")


def _mark(group: int, transform: str) -> str:
    placed = f' transform="{transform}"' if transform else ""
    hue = round(group * _GOLDEN_DEGREES % 360)
    return f'<path class="dot" style="--hue:{hue}" d="{_SHAPES[group % len(_SHAPES)]}"{placed}/>'


def _spread(values: Sequence[float], length: int) -> list[float]:
    """Values over the length with a margin; in the middle where all are the same."""
    low, high = (min(values), max(values)) if values else (0.0, 0.0)
    if high <= low:
        return [length / 2.0 for _ in values]
    return [_MARGIN + (value - low) / (high - low) * (length - 2 * _MARGIN) for value in values]
