"""Hair and hats: a shell round the head, cut open along a hairline, textured with strands.

The colour is mostly the person's; length, volume, fringe, parting and hats change between photos.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from preprocess.synthetic.geometry import (
    Body,
    Camera,
    Hit,
    Window,
    enlarge,
    heights,
    intersect,
    make_body,
    normals,
    profile,
)
from preprocess.synthetic.head import HEAD_TOP
from preprocess.synthetic.identity import Identity
from preprocess.synthetic.rng import Draws, FloatArray, strand_tiles
from preprocess.synthetic.scene import Grooming, Light
from preprocess.synthetic.shading import illuminate, linear

_KNOT_ANGLES = tuple(math.radians(a) for a in (0, 25, 45, 58, 68, 80, 92, 112, 180))
_OVER_EARS = 0.42  # hair length from which it falls over the ears
_LUMPINESS = (0.02, 0.04, 0.08)  # head units, by kind of hair


@dataclass(frozen=True)
class Hair:
    """Layers of linear colour [3, h, w] with coverage [h, w], in a window of the photo."""

    window: Window
    back: FloatArray  # behind head, neck and shoulders
    back_alpha: FloatArray
    front: FloatArray
    front_alpha: FloatArray


def hairline(person: Identity, grooming: Grooming) -> FloatArray:
    """Lowest y of the hair at each of 64 angles from the front (0) to the nape (π)."""
    g, p = grooming, person
    end = _lower_end(g)
    front = p.hairline_y + g.fringe * max(0.0, (p.brow_y - 0.06) - p.hairline_y) * 0.95
    sides_open = not covers_ears(g)
    knots = (
        front,
        front - p.temples * 0.5 * (1 - g.fringe),
        p.hairline_y + 0.32 - p.temples + 0.35 * g.fringe,
        -0.38 + 0.2 * g.fringe,
        -0.02 if sides_open else 0.5 * end - 0.1,
        0.22 if sides_open else end,
        -0.02 if sides_open else end,
        0.5 if sides_open else end,
        end,
    )
    angles = np.linspace(0.0, math.pi, 64)
    line = np.interp(angles, _KNOT_ANGLES, knots).astype(np.float32)
    return cv2.GaussianBlur(line[:, None], (1, 0), sigmaX=1, sigmaY=1.5, borderType=cv2.BORDER_REPLICATE)[:, 0]


def render_hair(
    person: Identity,
    g: Grooming,
    camera: Camera,
    size_px: int,
    light: Light,
    draws: Draws,
) -> Hair:
    """Draw the hair (and hat) of one photo."""
    shell = _shell(person, g)
    reach = 0.12 + float(shell.width.max())
    window = camera.window((-reach, shell.top - 0.1, -1.2), (reach, _lower_end(g) + 0.25, 1.5), size_px)
    coarse = intersect(shell, camera, window, num_steps=3)
    n = normals(shell, coarse, camera.matrix)
    turn = _wrapped(cv2.phase(coarse.z, coarse.x))  # -π..π, 0 in front
    fields = [coarse.y, coarse.inside, turn, _boundary(person, g, turn), *_strand_positions(coarse, g, draws)]
    fields += [_gloss(n, camera, light), *illuminate(n, light, flesh=False)]
    y, inside, turn, boundary, along, across, gloss, *lights = enlarge(fields, window)
    light_map = np.stack(lights)
    strands = cv2.remap(strand_tiles()[g.hair_kind], across, along, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    lumps = draws.field(y.shape, 9)
    softness = camera.pixels * 0.16
    shaped = (0.05 + 0.1 * g.fringe) * strands + 0.06 * lumps - y
    outline = np.clip(0.5 + (inside + 0.035 * strands + _LUMPINESS[g.hair_kind] * lumps) * (0.5 * camera.pixels), 0, 1)
    colour = linear(g.hair)
    front = light_map * ((0.62 + 0.5 * strands + 0.1 * lumps) * np.clip(0.72 + 0.5 * (boundary - y), 0.55, 1.0))
    front *= colour
    front += (gloss * np.clip(0.6 + 0.6 * strands, 0, 1)) * (0.09 + colour * 0.6)
    behind_end = _lower_end(g) if covers_ears(g) else 0.1  # cropped hair ends above the ears
    back = light_map * (0.25 + 0.2 * strands)
    back *= colour
    back_alpha = outline * np.clip((behind_end + shaped) * softness + 0.5, 0, 1)
    front_alpha = np.minimum(np.clip((boundary + shaped) * softness + 0.5, 0, 1), outline)
    if g.hat:
        _wear_hat(front, front_alpha, y, inside * camera.pixels, turn, g, light_map, strands)
    return Hair(window, back, back_alpha, front, front_alpha)


def _wrapped(angle: FloatArray) -> FloatArray:
    """Angles of 0..2π as -π..π."""
    return angle - np.float32(2 * math.pi) * (angle > math.pi)


def _boundary(person: Identity, g: Grooming, turn: FloatArray) -> FloatArray:
    """Lowest y of the hair at angles -π..π from the front."""
    angle = np.abs(turn)
    line = hairline(person, g)[np.minimum(angle * (63 / math.pi), 63.0).astype(np.intp)]
    return line + g.sweep * np.sin(turn) * np.clip(1.2 - angle, 0, 1)


def covers_ears(g: Grooming) -> bool:
    """Whether hair falls over the ears."""
    return g.hair_length >= _OVER_EARS


def contact_shadow(person: Identity, g: Grooming, hit: Hit) -> FloatArray:
    """Dimming [h, w] of the skin close to the hairline, for hits of any resolution."""
    turn = cv2.phase(hit.z, np.abs(hit.x))
    table = np.minimum(hairline(person, g), person.brow_y)
    boundary = table[np.minimum(turn * (63 / math.pi), 63.0).astype(np.intp)]
    if g.hat:
        boundary = np.maximum(boundary, -0.62)
    dimming = 0.38 * np.clip(1.0 - (hit.y - boundary) * 3.0, 0.0, 1.0)
    if covers_ears(g):  # hanging hair shades the cheeks
        np.maximum(dimming, 0.4 * np.clip((turn - 0.75) * 2.2, 0.0, 1.0), out=dimming)
    return 1.0 - dimming


def _lower_end(g: Grooming) -> float:
    return float(np.interp(g.hair_length, [0.0, 0.3, _OVER_EARS, 0.6, 1.0], [0.6, 0.75, 1.15, 1.6, 2.6]))


def _shell(p: Identity, g: Grooming) -> Body:
    volume = g.volume * (0.4 + 0.6 * min(1.0, g.hair_length * 2.5)) * (0.55 if g.hat else 1.0)
    top, bottom = HEAD_TOP - 0.03 - volume * 1.05, 3.2
    y = heights(top, bottom)
    dome = np.sqrt(np.clip(1.0 - np.clip((-0.4 - y) / (-0.4 - top), 0, 1) ** 2.3, 0, 1))
    long = covers_ears(g)
    wide = p.cranium_width + 0.03 + volume
    low = wide + 0.12 * g.volume if long else 0.74
    knots = [
        (-0.5, wide),
        (0.1, wide - (0.0 if long else 0.35 * volume)),
        (0.7, low),
        (1.6, low * 0.97),
        (2.6, low * 1.08),
    ]
    width = profile(y, knots, 0.15)
    depth = profile(y, [(-1.0, 1.12 + volume), (-0.3, 1.2 + volume), (0.6, 1.12), (1.5, 1.0)], 0.15)
    floor = 0.02
    return make_body(
        top, bottom, np.maximum(width * dome, floor), np.maximum(depth * dome, floor), np.full_like(y, -0.03)
    )


def _strand_positions(hit: Hit, g: Grooming, draws: Draws) -> tuple[FloatArray, FloatArray]:
    """Where to look up strand noise, along and across strands that fall from the parting."""
    around = _wrapped(cv2.phase(hit.z + 0.35, hit.x - g.parting))
    wave = 46.0 * draws.uniform(0.0, 0.12)
    across = around * 46.0 + wave * np.sin(hit.y * draws.uniform(3.0, 7.0)) + draws.uniform(200.0, 4000.0)
    return hit.y * 60.0 + draws.uniform(200.0, 4000.0), across


def _gloss(n: tuple[FloatArray, ...], camera: Camera, light: Light) -> FloatArray:
    """Highlight across falling strands (Kajiya and Kay 1989): bright where the strand is square to the half vector."""
    m = camera.matrix
    down = (m[0][1], m[1][1], m[2][1])
    lx, ly, lz = light.key_direction
    length = math.sqrt(lx * lx + ly * ly + (lz + 1.0) ** 2)
    hx, hy, hz = lx / length, ly / length, (lz + 1.0) / length
    along = n[0] * down[0] + n[1] * down[1] + n[2] * down[2]
    facing = n[0] * hx + n[1] * hy + n[2] * hz
    tangent = (hx * down[0] + hy * down[1] + hz * down[2] - along * facing) / np.sqrt(1.02 - along * along)
    shine = np.maximum(1.0 - tangent * tangent, 0.0)
    shine = shine * shine
    shine = shine * shine
    shine = shine * shine
    return shine * shine * np.maximum(facing, 0.0) * (light.key_colour[1] * 0.55)


def _wear_hat(
    front: FloatArray,
    alpha: FloatArray,
    y: FloatArray,
    inside_px: FloatArray,
    turn: FloatArray,
    g: Grooming,
    light_map: FloatArray,
    strands: FloatArray,
) -> None:
    """Lay a knitted beanie or a headband over the hair's front layer, in place."""
    brim = -0.62 + 0.1 * np.abs(turn)
    knit = 0.85 + 0.15 * np.sin(turn * 60.0) + 0.06 * strands
    cuff = np.where(y > brim - 0.32, 1.0, 0.82).astype(np.float32)
    mask = np.clip((brim - y) * 30.0, 0, 1) * np.clip(0.5 + inside_px, 0, 1)
    if g.hat == 2:
        mask = mask * np.clip((y - brim + 0.3) * 30.0, 0, 1)
    base = (np.array(g.hat_colour, np.float32) ** 2)[:, None, None]
    front += mask * (base * (knit * cuff) * light_map - front)
    np.maximum(alpha, mask, out=alpha)
