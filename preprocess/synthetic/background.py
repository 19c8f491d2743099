"""What lies behind a person: out-of-focus rooms, streets, foliage, lights and studio paper."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from preprocess.synthetic.rng import Draws, FloatArray

_CANVAS = 64


def render_background(d: Draws, size_px: int) -> FloatArray:
    """Draw a background, planar linear light [3, size, size]."""
    kinds: tuple[Callable[[Draws], FloatArray], ...] = (_paper, _wall, _room, _room, _foliage, _street, _bokeh)
    canvas = kinds[d.integer(len(kinds))](d)
    sigma = d.uniform(0.8, 5.0)
    canvas = cv2.GaussianBlur(canvas, (0, 0), sigma)
    picture = cv2.resize(canvas, (size_px, size_px), interpolation=cv2.INTER_CUBIC)
    picture = np.clip(picture, 0.0, 1.2)
    return np.stack(cv2.split(picture * picture))


def _tinted(base: tuple[float, float, float], field: FloatArray, strength: float) -> FloatArray:
    return np.array(base, np.float32) * (1.0 + strength * field[..., None])


def _paper(d: Draws) -> FloatArray:
    """Studio paper: one colour with a soft pool of light."""
    base = d.colour(0.25, 0.9, 0.15)
    axis = np.linspace(-1, 1, _CANVAS, dtype=np.float32)
    cx, cy = d.uniform(-0.7, 0.7), d.uniform(-0.7, 0.5)
    pool = np.exp(-((axis[None, :] - cx) ** 2 + (axis[:, None] - cy) ** 2) / d.uniform(0.5, 2.5))
    return _tinted(base, pool - 0.5, d.uniform(0.1, 0.5)) + 0.03 * d.field((_CANVAS, _CANVAS), 5, 3)


def _wall(d: Draws) -> FloatArray:
    """A plain or stained wall, light falling off to one side, sometimes with a skirting, a picture or a corner."""
    canvas = _tinted(d.colour(0.35, 0.9, 0.1), d.field((_CANVAS, _CANVAS), 2), d.uniform(0.05, 0.25))
    canvas *= 1 + 0.05 * d.field((_CANVAS, _CANVAS), 14)[..., None]
    if d.chance(0.5):
        column = d.integer(_CANVAS)
        canvas[:, column:] *= d.uniform(0.65, 0.95)
    if d.chance(0.5):
        _box(d, canvas, d.colour(0.1, 0.9, 0.25))
    return canvas


def _box(d: Draws, canvas: FloatArray, colour: tuple[float, float, float]) -> None:
    x, y = d.integer(_CANVAS + 10) - 10, d.integer(_CANVAS) - 10
    width, height = 5 + d.integer(24), 5 + d.integer(30)
    cv2.rectangle(canvas, (x, y), (x + width, y + height), colour, -1)


def _room(d: Draws) -> FloatArray:
    """An interior: wall, a window or lamp, furniture and shelves."""
    canvas = _tinted(d.colour(0.25, 0.75, 0.13), d.field((_CANVAS, _CANVAS), 3), 0.25)
    for _ in range(2 + d.integer(6)):
        _box(d, canvas, d.colour(0.06, 0.7, 0.22))
    if d.chance(0.5):  # shelves or blinds
        step, thickness = 5 + d.integer(9), 1 + d.integer(3)
        tone = d.colour(0.1, 0.8, 0.2)
        left, right = sorted((d.integer(_CANVAS), d.integer(_CANVAS)))
        for y in range(d.integer(step), _CANVAS, step):
            cv2.rectangle(canvas, (left, y), (right, y + thickness), tone, -1)
    if d.chance(0.6):  # window or lamp
        _box(d, canvas, d.colour(0.95, 1.1, 0.08))
    return canvas * (1 + 0.06 * d.field((_CANVAS, _CANVAS), 20)[..., None])


def _foliage(d: Draws) -> FloatArray:
    """Greenery with gaps of sky, darker towards the ground."""
    leaf = np.array([d.uniform(0.25, 0.5), d.uniform(0.36, 0.55), d.uniform(0.2, 0.4)], np.float32)
    noise = (
        d.field((_CANVAS, _CANVAS), 6) + 0.7 * d.field((_CANVAS, _CANVAS), 15) + 0.5 * d.field((_CANVAS, _CANVAS), 30)
    )
    canvas = leaf * (0.85 + 0.35 * noise[..., None])
    down = np.linspace(1, 0, _CANVAS, dtype=np.float32)[:, None]
    sky = np.clip((d.field((_CANVAS, _CANVAS), 7) + 2.2 * down - d.uniform(1.2, 2.2)) * 3, 0, 1)[..., None]
    canvas += sky * (np.array(d.colour(0.75, 1.05, 0.08), np.float32) - canvas)
    return np.maximum(canvas, 0.03)


def _street(d: Draws) -> FloatArray:
    """Sky over house fronts with rows of windows over paving."""
    sky = np.array(d.colour(0.65, 1.0, 0.12), np.float32) * np.array([0.95, 1.0, 1.06], np.float32)
    canvas = np.empty((_CANVAS, _CANVAS, 3), np.float32)
    canvas[:] = sky
    x = 0
    while x < _CANVAS:
        width, top = 10 + d.integer(22), d.integer(_CANVAS // 2)
        front = d.colour(0.2, 0.7, 0.2)
        cv2.rectangle(canvas, (x, top), (x + width, _CANVAS), front, -1)
        pane = tuple(v * d.uniform(0.4, 1.5) for v in front)
        for wy in range(top + 4, _CANVAS, 9):
            for wx in range(x + 2, x + width - 3, 7):
                cv2.rectangle(canvas, (wx, wy), (wx + 3, wy + 5), pane, -1)
        x += width
    ground = _CANVAS - 6 - d.integer(20)
    canvas[ground:] = d.colour(0.25, 0.6, 0.1)
    return canvas * (1 + 0.1 * d.field((_CANVAS, _CANVAS), 12)[..., None])


def _bokeh(d: Draws) -> FloatArray:
    """Dusk or indoors with discs of light."""
    canvas = _tinted(d.colour(0.1, 0.45, 0.25), d.field((_CANVAS, _CANVAS), 3), 0.5)
    for _ in range(4 + d.integer(14)):
        disc = np.zeros_like(canvas)
        centre = (d.integer(_CANVAS), d.integer(_CANVAS))
        cv2.circle(disc, centre, 2 + d.integer(6), d.colour(0.2, 0.7, 0.35), -1, cv2.LINE_AA)
        canvas += disc
    return np.maximum(canvas, 0.02)
