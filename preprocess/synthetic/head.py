"""The lasting shape and skin of one head: body, relief and frontal albedo chart, computed once per identity."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from preprocess.synthetic.geometry import Body, Chart, heights, make_body, profile
from preprocess.synthetic.identity import Identity, sample_identity
from preprocess.synthetic.rng import FloatArray

HEAD_TOP = -1.62


@dataclass(frozen=True)
class Head:
    """One identity, ready to be photographed."""

    person: Identity
    body: Body
    chart: Chart
    relief: FloatArray  # [h, w, 3]: displacement along z, its slopes along x and y
    smile_relief: FloatArray  # [h, w, 3]: what a full smile adds
    surface: FloatArray  # [h/4, w/4]: z of the whole front, for cast shadows
    albedo: np.ndarray  # uint8 [h, w, 3] RGB: skin without eyes, brows and mouth


def build_head(seed: int, identity: int, size_px: int) -> Head:
    """Sculpt and paint one identity; charts are as dense as photos of `size_px` need."""
    person = sample_identity(seed, identity)
    chart = Chart(density=0.42 * size_px)
    body = _sculpt(person)
    height = _relief(person, chart)
    smile = _smile_relief(person, chart)
    return Head(
        person,
        body,
        chart,
        _with_slopes(height, chart),
        _with_slopes(smile, chart),
        _front_surface(body, chart, height),
        _paint(person, chart, height),
    )


def _sculpt(p: Identity) -> Body:
    top, bottom = HEAD_TOP - 0.02, p.chin_y + 0.02
    y = heights(top, bottom)
    skull = np.sqrt(np.clip(1.0 - np.clip((-0.45 - y) / (-0.45 - HEAD_TOP), 0, 1) ** 2.3, 0, 1))
    close = np.clip((y - (p.chin_y - 0.34)) / 0.34, 0, 1)
    chin = np.sqrt(np.clip(1.0 - close**2.4, 0, 1))
    width = profile(
        y,
        [
            (-1.0, p.cranium_width), (-0.45, p.cranium_width), (0.3, p.cheek_width), (0.55, p.cheek_width * 0.97),
            (p.mouth_y + 0.02, p.jaw_width), (p.chin_y - 0.14, p.chin_width), (p.chin_y + 0.1, p.chin_width * 0.8),
        ],
        0.11,
    )  # fmt: skip
    front = profile(
        y,
        [
            (-1.2, 0.98), (-0.8, 1.13), (p.brow_y, 1.21), (0.0, 1.13), (0.4, 1.14), (p.mouth_y, 1.17),
            (p.mouth_y + 0.28, 1.12 + 0.5 * p.chin_forward), (p.chin_y - 0.16, 1.15 + p.chin_forward),
            (p.chin_y + 0.1, 1.1 + p.chin_forward),
        ],
        0.07,
    )  # fmt: skip
    centre = profile(y, [(0.5, 0.0), (p.mouth_y + 0.2, 0.18), (p.chin_y, 0.62)], 0.1)
    floor = 0.02
    return make_body(
        top, bottom, np.maximum(width * skull * chin, floor), np.maximum((front - centre) * skull * chin, floor), centre
    )


def _bump(x: FloatArray, y: FloatArray, cx: float, cy: float, sx: float, sy: float) -> FloatArray:
    return np.outer(np.exp(-(((y - cy) / sy) ** 2)), np.exp(-(((x - cx) / sx) ** 2)))


def _pair(x: FloatArray, y: FloatArray, cx: float, cy: float, sx: float, sy: float) -> FloatArray:
    return np.outer(np.exp(-(((y - cy) / sy) ** 2)), np.exp(-(((x - cx) / sx) ** 2)) + np.exp(-(((x + cx) / sx) ** 2)))


def _relief(p: Identity, chart: Chart) -> FloatArray:
    x, y = chart.axes()
    tip_y = p.nose_length - 0.09
    middle = 0.5 * (p.bridge_height + p.nose_height) + p.nose_hump
    knots_y = [-0.32, -0.04, 0.5 * tip_y, tip_y - 0.02, tip_y + 0.05, p.nose_length + 0.07]
    knots_z = [0.0, p.bridge_height, middle, p.nose_height, p.nose_height * 0.86, 0.0]
    ridge = np.interp(y, knots_y, knots_z).astype(np.float32)
    ridge = cv2.GaussianBlur(ridge[:, None], (1, 0), sigmaX=1, sigmaY=0.035 * chart.density)[:, 0]
    spread = np.interp(y, [-0.1, 0.2, tip_y], [p.nose_slimness * 1.15, p.nose_slimness * 1.2, p.nose_width * 0.7])
    drop = 0.07 * np.minimum((x / p.nose_width) ** 2, 1.5)  # the wings end higher than the tip
    row = (y[:, None] + drop[None, :] * np.clip(y[:, None] / tip_y, 0, 1) - y[0]) * chart.density
    column = np.zeros_like(row)
    ridge = cv2.remap(ridge[:, None], column, row, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    nose = ridge * np.exp(-((x[None, :] / spread[:, None]) ** 2))
    wings = 0.13 * _pair(x, y, p.nose_width * 0.78, p.nose_length - 0.055, 0.085, 0.08)
    eyes = -p.socket * _pair(x, y, p.eye_x * 0.95, -0.02, 0.25, 0.15) - 0.06 * _pair(x, y, 0.2, -0.03, 0.1, 0.12)
    eyes += 0.075 * _pair(x, y, p.eye_x, 0.01, p.eye_width * 0.8, 0.1)
    bones = p.brow_ridge * _pair(x, y, p.eye_x * 0.9, p.brow_y + 0.02, 0.3, 0.1)
    bones += p.cheekbone * _pair(x, y, 0.62, 0.42, 0.24, 0.2) - p.cheek_hollow * _pair(x, y, 0.62, 0.95, 0.2, 0.24)
    bones += 0.03 * _pair(x, y, 0.35, -0.72, 0.25, 0.2) - 0.04 * _pair(x, y, 0.88, -0.4, 0.15, 0.3)
    mouth = 0.07 * _bump(x, y, 0.0, p.mouth_y, 0.34, 0.26)
    mouth += 0.05 * _bump(x, y, 0.0, p.mouth_y - 0.5 * p.upper_lip, p.mouth_width * 0.7, 0.06)
    mouth += 0.06 * _bump(x, y, 0.0, p.mouth_y + 0.6 * p.lower_lip, p.mouth_width * 0.65, 0.07)
    mouth -= 0.055 * _bump(x, y, 0.0, p.mouth_y + p.lower_lip + 0.13, 0.26, 0.07)
    mouth -= 0.022 * _bump(x, y, 0.0, p.mouth_y - 0.19, 0.04, 0.09)
    mouth -= 0.035 * _pair(x, y, p.mouth_width + 0.04, p.mouth_y + 0.02, 0.05, 0.08)
    chin = 0.08 * _bump(x, y, 0.0, p.chin_y - 0.2, 0.22, 0.13)
    folds = -(0.012 + 0.03 * p.age) * _nasolabial(p, x, y)
    return (nose + wings + eyes + bones + mouth + chin + folds).astype(np.float32)


def _nasolabial(p: Identity, x: FloatArray, y: FloatArray) -> FloatArray:
    """Line from the nose's wing to beside the mouth's corner, 1 on the line."""
    along = np.clip((y - (p.nose_length - 0.05)) / (p.mouth_y + 0.05 - p.nose_length + 0.05), 0, 1)
    line = p.nose_width + 0.06 + (p.mouth_width + 0.1 - p.nose_width) * along
    fade = np.clip(1.2 - 2.4 * np.abs(along - 0.5), 0, 1) * ((y > p.nose_length - 0.1) & (y < p.mouth_y + 0.1))
    return np.exp(-(((np.abs(x)[None, :] - line[:, None]) / 0.05) ** 2)) * fade[:, None]


def _smile_relief(p: Identity, chart: Chart) -> FloatArray:
    x, y = chart.axes()
    cheeks = 0.07 * _pair(x, y, 0.5, 0.62, 0.17, 0.14)
    return (cheeks - 0.04 * _nasolabial(p, x, y)).astype(np.float32)


def _with_slopes(height: FloatArray, chart: Chart) -> FloatArray:
    scale = 0.5 * chart.density
    kernel = np.array([[-1, 0, 1]], np.float32) * scale
    return cv2.merge([height, cv2.filter2D(height, -1, kernel), cv2.filter2D(height, -1, kernel.T)])


def _front_surface(body: Body, chart: Chart, relief: FloatArray) -> FloatArray:
    x, y = chart.axes()
    rows = body.rows(y)
    ratio = x[None, :] / body.width[rows][:, None]
    z = body.centre[rows][:, None] + body.depth[rows][:, None] * np.sqrt(np.clip(1 - ratio**2, 0, 1)) + relief
    z[(y < body.top) | (y > body.bottom)] = 0.0
    return cv2.resize(z.astype(np.float32), None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)


def _paint(p: Identity, chart: Chart, relief: FloatArray) -> np.ndarray:
    """Skin colour with its redder and paler zones, crevices, pores, freckles, moles and wrinkles."""
    generator = np.random.Generator(np.random.Philox(key=p.face_texture))
    x, y = chart.axes()
    height, width = chart.shape
    skin = np.empty((height, width, 3), np.float32)
    skin[:] = p.skin
    strength = 1.0 - 0.5 * p.melanin
    red = (0.05 + 0.09 * p.blush) * _pair(x, y, 0.52, 0.55, 0.3, 0.24)
    red += 0.08 * _bump(x, y, 0, p.nose_length - 0.08, 0.2, 0.14) + 0.04 * _pair(x, y, p.eye_x, 0.12, 0.25, 0.08)
    red += 0.03 * _bump(x, y, 0, p.chin_y - 0.2, 0.2, 0.15)
    coarse = cv2.resize(generator.standard_normal((24, 16), np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    fine = cv2.GaussianBlur(generator.standard_normal((height, width), np.float32), (0, 0), 0.012 * chart.density)
    red += 0.018 * coarse
    shade = 1.0 + 0.012 * coarse + 0.1 * fine / max(1.0, 6 * float(fine.std()))
    crevice = relief - cv2.GaussianBlur(relief, (0, 0), 0.09 * chart.density)
    shade += np.clip(crevice * 2.2, -0.3, 0.05)
    shade -= 0.1 * (0.4 + 0.6 * p.age) * _pair(x, y, p.eye_x * 0.95, 0.16, 0.2, 0.06)
    shade -= (0.04 + 0.12 * p.age) * _nasolabial(p, x, y)
    if p.age > 0.5:
        for k, line in enumerate((-0.52, -0.64, -0.77)):
            wave = line + 0.02 * np.sin(x * (5.0 + k))
            shade -= (p.age - 0.5) * 0.2 * np.exp(-(((y[:, None] - wave) / 0.02) ** 2)) * np.exp(-((x / 0.45) ** 4))
    for side in (-1.0, 1.0):  # nostrils and the shadow beneath the wings
        shade -= 0.6 * _bump(x, y, side * p.nose_width * 0.48, p.nose_length - 0.005, 0.06, 0.03)
        shade -= 0.2 * _bump(x, y, side * (p.nose_width + 0.03), p.nose_length - 0.05, 0.035, 0.08)
    shade -= 0.06 * _bump(x, y, 0.0, p.nose_length + 0.05, p.nose_width * 0.8, 0.05)
    if p.freckles:
        dots = (generator.random((height, width)) > 1 - 0.012 * p.freckles).astype(np.float32)
        dots = cv2.GaussianBlur(dots, (0, 0), 0.014 * chart.density) * (6.0 * 0.014 * chart.density) ** 2 / 9
        zone = _pair(x, y, 0.35, 0.35, 0.4, 0.35) + 0.4 * _bump(x, y, 0, -0.6, 0.6, 0.25)
        shade -= 0.3 * np.minimum(dots, 1) * zone
    for mx, my, radius in p.moles:
        shade -= 0.55 * _bump(x, y, mx, my, radius, radius)
    skin[..., 0] *= shade + 0.3 * red * strength
    skin[..., 1] *= shade - 1.0 * red * strength
    skin[..., 2] *= shade - 0.8 * red * strength
    return np.clip(skin, 0, 255).astype(np.uint8)
