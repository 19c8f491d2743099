"""Hair and hats: a shell round the head, cut open along a hairline, textured with strands.

The colour is mostly the person's; length, volume, fringe, parting and hats change between photos.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from preprocess.synthetic.geometry import Body, Camera, Hit, Window, heights, intersect, make_body, normals, profile
from preprocess.synthetic.head import HEAD_TOP
from preprocess.synthetic.identity import Identity
from preprocess.synthetic.rng import Draws, FloatArray, strand_tiles
from preprocess.synthetic.scene import Grooming, Light
from preprocess.synthetic.shading import illuminate, linear

_KNOT_ANGLES = tuple(math.radians(a) for a in (0, 25, 45, 60, 70, 80, 92, 112, 180))


@dataclass(frozen=True)
class Hair:
    """Two layers, back to front, planar linear colour [3, H, W] with coverage [H, W]."""

    window: Window
    back: FloatArray
    back_alpha: FloatArray
    front: FloatArray
    front_alpha: FloatArray


def hairline(person: Identity, grooming: Grooming) -> FloatArray:
    """Lowest y of the hair at each of 64 angles from the front (0) to the nape (π)."""
    g, p = grooming, person
    end = _lower_end(g)
    front = p.hairline_y + g.fringe * max(0.0, (p.brow_y - 0.06) - p.hairline_y) * 0.95
    sides_open = g.hair_length < 0.42
    knots = (
        front,
        front - p.temples * 0.5 * (1 - g.fringe),
        p.hairline_y + 0.22 - p.temples + 0.35 * g.fringe,
        -0.42 + 0.2 * g.fringe,
        -0.1 if sides_open else 0.5 * end - 0.1,
        0.22 if sides_open else end,
        -0.02 if sides_open else end,
        0.5 if sides_open else end,
        end,
    )
    angles = np.linspace(0.0, math.pi, 64)
    line = np.interp(angles, _KNOT_ANGLES, knots).astype(np.float32)
    return cv2.GaussianBlur(line[:, None], (1, 0), sigmaX=1, sigmaY=0.9, borderType=cv2.BORDER_REPLICATE)[:, 0]


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
    hit = intersect(shell, camera, window, num_steps=3)
    n = normals(shell, hit, camera.matrix)
    angle = cv2.phase(hit.z, hit.x)  # 0..2π, 0 in front
    strands = _strands(hit, g, draws)
    turn = angle - (2 * math.pi) * (angle > math.pi)
    edge_angle = np.abs(turn + 0.05 * strands)
    table = hairline(person, g)
    boundary = table[np.minimum(edge_angle * (63 / math.pi), 63.0).astype(np.intp)]
    boundary = boundary + g.sweep * np.sin(turn) * np.clip(1.2 - np.abs(turn), 0, 1)
    ragged = (0.05 + 0.1 * g.fringe) * strands
    softness = camera.pixels * 0.16
    cover = np.clip((boundary + ragged - hit.y) * softness + 0.5, 0, 1)
    outline = np.clip(0.5 + (hit.inside + 0.035 * strands) * (0.5 * camera.pixels), 0, 1)
    colour = linear(g.hair) * (0.62 + 0.5 * strands)
    light_map = illuminate(n, light, flesh=False)
    depth_shade = np.clip(0.72 + 0.5 * (boundary - hit.y), 0.55, 1.0)
    front = colour * light_map * depth_shade
    front += _gloss(n, camera, light, strands) * (0.09 + linear(g.hair) * 0.6)
    back = colour * light_map * 0.4
    end = _lower_end(g) + 0.12 * strands
    back_alpha = outline * np.clip((end - hit.y) * softness + 0.5, 0, 1)
    front_alpha = np.minimum(cover, outline)
    if g.hat:
        _wear_hat(front, front_alpha, hit, outline, turn, g, light_map, strands)
    return Hair(window, back, back_alpha, front, front_alpha)


def contact_shadow(person: Identity, g: Grooming, hit: Hit) -> FloatArray:
    """Dimming [H, W] of the skin close to the hairline."""
    turn = cv2.phase(hit.z, np.abs(hit.x))
    table = hairline(person, g)
    boundary = table[np.minimum(turn * (63 / math.pi), 63.0).astype(np.intp)]
    if g.hat:
        boundary = np.maximum(boundary, -0.62)
    return 1.0 - 0.38 * np.clip(1.0 - (hit.y - boundary) * 4.0, 0.0, 1.0)


def _lower_end(g: Grooming) -> float:
    return float(np.interp(g.hair_length, [0.0, 0.3, 0.42, 0.6, 1.0], [0.6, 0.75, 1.15, 1.6, 2.6]))


def _shell(p: Identity, g: Grooming) -> Body:
    volume = g.volume * (0.4 + 0.6 * min(1.0, g.hair_length * 2.5)) * (0.55 if g.hat else 1.0)
    top, bottom = HEAD_TOP - 0.03 - volume * 1.05, 3.2
    y = heights(top, bottom)
    dome = np.sqrt(np.clip(1.0 - np.clip((-0.4 - y) / (-0.4 - top), 0, 1) ** 2.3, 0, 1))
    long = g.hair_length >= 0.42
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


def _strands(hit: Hit, g: Grooming, draws: Draws) -> FloatArray:
    """Strand noise in about [-1, 1] that falls from the parting."""
    tile = strand_tiles()[g.hair_kind]
    around = cv2.phase(hit.z + 0.35, hit.x - g.parting)
    around -= (2 * math.pi) * (around > math.pi)
    wave = draws.uniform(0.0, 0.12)
    columns = around * 46.0 + wave * 46.0 * np.sin(hit.y * draws.uniform(3.0, 7.0)) + draws.uniform(200.0, 4000.0)
    rows = hit.y * 60.0 + draws.uniform(200.0, 4000.0)
    return cv2.remap(tile, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)


def _gloss(n: tuple[FloatArray, ...], camera: Camera, light: Light, strands: FloatArray) -> FloatArray:
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
    strength = light.key_colour[1] * 0.55
    return shine * shine * np.maximum(facing, 0.0) * np.clip(0.6 + 0.6 * strands, 0, 1) * strength


def _wear_hat(
    front: FloatArray,
    alpha: FloatArray,
    hit: Hit,
    outline: FloatArray,
    turn: FloatArray,
    g: Grooming,
    light_map: FloatArray,
    strands: FloatArray,
) -> None:
    brim = -0.62 + 0.1 * np.abs(turn)
    ribs = 0.85 + 0.15 * np.sin(turn * 60.0) + 0.06 * strands
    cuff = np.where(hit.y > brim - 0.32, 1.0, 0.82)
    mask = np.clip((brim - hit.y) * 30.0, 0, 1) * outline
    if g.hat == 2:
        mask = mask * np.clip((hit.y - brim + 0.3) * 30.0, 0, 1)
    base = (np.array(g.hat_colour, np.float32) ** 2)[:, None, None]
    front += mask * (base * (ribs * cuff) * light_map - front)
    np.maximum(alpha, mask, out=alpha)
