"""Eyes, brows, mouth, beard and glasses, painted into a photo's copy of the albedo chart.

All masks are soft to about one chart pixel; colours are sRGB 0..255.
"""

from __future__ import annotations

import numpy as np

from preprocess.synthetic.geometry import CHART_TOP, CHART_X, Chart
from preprocess.synthetic.head import Head
from preprocess.synthetic.identity import Identity
from preprocess.synthetic.rng import FloatArray, strand_tiles
from preprocess.synthetic.scene import Expression, Grooming, Scene


def paint_features(head: Head, scene: Scene, key_direction: tuple[float, ...]) -> np.ndarray:
    """Return a copy of the head's albedo with this photo's features; `key_direction` is in the head's frame."""
    albedo = head.albedo.copy()
    if scene.grooming.beard > 0.15:
        _paint_beard(albedo, head, scene.grooming)
    _paint_eyes(albedo, head, scene, key_direction)
    _paint_brows(albedo, head, scene)
    _paint_mouth(albedo, head, scene)
    if scene.grooming.glasses:
        _paint_glasses(albedo, head.chart, head.person, scene.grooming.glasses)
    return albedo


def mouth_corner(person: Identity, expression: Expression) -> tuple[float, float]:
    """(half width, y) of the mouth's corners, head units."""
    half_width = person.mouth_width * (1.0 + 0.12 * expression.smile - 0.06 * expression.mouth_open)
    return half_width, person.mouth_y - 0.045 * expression.smile


def eye_centre(person: Identity, side: float) -> tuple[float, float]:
    """(x, y) of an eye's centre; `side` is -1 for the image's left."""
    return side * person.eye_x, side * person.asymmetry


class _Patch:
    """One rectangle of the chart, or two mirrored ones side by side, with their head coordinates."""

    def __init__(self, chart: Chart, left: float, top: float, right: float, bottom: float, mirrored: bool) -> None:
        """Cover x in [left, right] (and its mirror image) and y in [top, bottom], head units."""
        self.density, (height, width) = chart.density, chart.shape
        first = max(0, int((left + CHART_X) * self.density))
        last = min(width, int((right + CHART_X) * self.density) + 2)
        r0, r1 = (
            max(0, int((top - CHART_TOP) * self.density)),
            min(height, int((bottom - CHART_TOP) * self.density) + 2),
        )
        spans = [(first, last), (width - last, width - first)] if mirrored else [(first, last)]
        self.windows = [(slice(r0, r1), slice(*span)) for span in spans]
        columns = np.concatenate([np.arange(*span, dtype=np.float32) for span in spans])
        self.x = (columns / self.density - CHART_X)[None, :]  # [1, w]
        self.y = (np.arange(r0, r1, dtype=np.float32) / self.density + CHART_TOP)[:, None]  # [h, 1]
        self.side = np.sign(self.x)  # -1 on the image's left

    def soft(self, signed: FloatArray) -> FloatArray:
        """1 where `signed` (head units) is positive, with a one-pixel ramp."""
        return np.clip(0.5 + signed * (self.density * 0.8), 0.0, 1.0)

    def load(self, albedo: np.ndarray) -> FloatArray:
        """Copy the patch out of a chart image [H, W, 3], planar float32 [3, h, w]."""
        parts = [albedo[w].transpose(2, 0, 1) for w in self.windows]
        return np.concatenate(parts, 2).astype(np.float32, order="C")

    def store(self, albedo: np.ndarray, image: FloatArray) -> None:
        """Write the patch back."""
        parts = np.split(np.clip(image, 0, 255).astype(np.uint8), len(self.windows), axis=2)
        for window, part in zip(self.windows, parts, strict=True):
            albedo[window] = part.transpose(1, 2, 0)


def _rgb(red: float, green: float, blue: float) -> FloatArray:
    """A colour as [3, 1, 1]."""
    return np.array([red, green, blue], np.float32)[:, None, None]


def _mix(image: FloatArray, mask: FloatArray, colour: FloatArray) -> None:
    """Lay a colour [3, 1 or h, 1 or w] over a patch [3, h, w] with coverage [h, w], in place."""
    image += mask * (colour - image)


def _paint_eyes(albedo: np.ndarray, head: Head, scene: Scene, key: tuple[float, ...]) -> None:
    p, e = head.person, scene.expression
    half = p.eye_width
    patch = _Patch(head.chart, p.eye_x - 1.5 * half, -0.26, p.eye_x + 1.5 * half, 0.24, mirrored=True)
    side = patch.side
    cx, cy = side * p.eye_x, side * p.asymmetry
    image = patch.load(albedo)
    out = side * (patch.x - cx)  # grows towards the temple
    u = np.clip(out / half, -1, 1)
    arch = np.maximum(1 - u * u, 0) ** 0.72
    tilt = cy - p.eye_tilt * out
    upper = tilt - 1.15 * p.eye_open * e.eyes_open * arch * (1 - 0.12 * u)
    lower = tilt + 0.75 * p.eye_open * (0.55 + 0.45 * e.eyes_open) * arch * (1 + 0.12 * u)
    y = patch.y
    near = np.clip(1.25 - np.abs(out) / half, 0, 0.22) * 4.5
    lid_shade = 0.22 * np.exp(-(((y - (upper - 0.03)) / 0.06) ** 2)) * near
    image *= 1 - lid_shade
    crease = upper - 0.045 - 0.025 * (1 - u * u)
    image *= 1 - (0.42 * p.lid_crease * np.exp(-(((y - crease) / 0.016) ** 2)) * near)
    if scene.grooming.lip_tint:
        lids = np.exp(-(((y - (upper - 0.03)) / 0.04) ** 2)) * near * 0.5 * scene.grooming.lip_tint
        _mix(image, lids, _rgb(70.0, 45.0, 45.0))
    inside = patch.soft(y - upper) * patch.soft(lower - y) * patch.soft(half - np.abs(out))
    shade = 0.62 + 0.38 * np.clip((y - upper) / 0.075, 0, 1) - 0.2 * u * u
    eye = _rgb(226.0, 218.0, 212.0) * shade
    gx = patch.x - cx - e.gaze_x
    gy = y - tilt - e.gaze_y + 0.12 * p.eye_open
    radius = np.sqrt(gx * gx + gy * gy)
    ring = np.clip(radius / p.iris_radius, 0, 1)
    iris = _rgb(*p.iris) * (0.75 + 0.6 * ring * (1.05 - ring) * 1.6)
    iris *= 1 - 0.65 * np.clip((ring - 0.75) * 4, 0, 1)
    iris *= 0.55 + 0.45 * np.clip((y - upper) / 0.06, 0, 1)
    _mix(eye, patch.soft(p.iris_radius - radius), iris)
    _mix(eye, patch.soft(0.4 * p.iris_radius - radius), _rgb(12.0, 10.0, 10.0))
    glint = np.exp(-(((gx - 0.05 * key[0]) / 0.022) ** 2 + ((gy - 0.05 * key[1]) / 0.022) ** 2))
    _mix(eye, np.minimum(glint * 0.95, 1), _rgb(255.0, 255.0, 255.0))
    corner = np.exp(-(((out + half * 0.93) / 0.03) ** 2 + ((y - tilt) / 0.03) ** 2))
    _mix(eye, corner * 0.6, _rgb(190.0, 130.0, 120.0))
    _mix(image, inside, eye)
    lash = np.exp(-(((y - upper + 0.006) / (0.017 + 0.006 * u)) ** 2)) * np.clip(near, 0, 1)
    _mix(image, lash * (0.78 + 0.2 * p.makeup), _rgb(28.0, 20.0, 18.0))
    _mix(image, np.exp(-(((y - lower - 0.004) / 0.012) ** 2)) * np.clip(near, 0, 1) * 0.4, _rgb(70.0, 45.0, 40.0))
    patch.store(albedo, image)


def _paint_brows(albedo: np.ndarray, head: Head, scene: Scene) -> None:
    p = head.person
    start, end = p.brow_gap, p.brow_gap + p.brow_length
    middle = p.brow_y - scene.expression.brow_raise
    patch = _Patch(head.chart, start - 0.1, middle - 0.2, end + 0.1, middle + 0.17, mirrored=True)
    side = patch.side
    base = middle + side * p.asymmetry
    image = patch.load(albedo)
    u = (side * patch.x - start) / p.brow_length
    line = base + 0.03 - p.brow_tilt * (u - 0.4) * 0.6 - p.brow_arch * (1 - ((u - 0.62) / 0.62) ** 2)
    thickness = p.brow_thickness * np.clip(1.12 - 0.75 * np.maximum(u - 0.2, 0), 0.15, 1.1)
    across = np.abs(patch.y - line) / thickness
    mask = np.clip(1.45 - across, 0, 1) * np.clip(u * 7 + 0.6, 0, 1) * np.clip((1.02 - u) * 7, 0, 1)
    rows = ((patch.y - line) * 340 + 4000).astype(np.intp) & 511
    columns = ((u * 150 + (patch.y - line) * 190) + 4000 + p.face_texture % 200).astype(np.intp) & 511
    strands = 0.72 + 0.4 * strand_tiles()[0][rows, columns]
    colour = [0.62 * h + 6 for h in p.hair]
    _mix(image, np.clip(mask * strands * (p.brow_density + 0.1), 0, 0.96), _rgb(*(min(c, 110.0) for c in colour)))
    patch.store(albedo, image)


def _paint_mouth(albedo: np.ndarray, head: Head, scene: Scene) -> None:
    p, e = head.person, scene.expression
    half, corner_y = mouth_corner(p, e)
    patch = _Patch(head.chart, -half - 0.14, p.mouth_y - 0.34, half + 0.14, p.mouth_y + 0.5, mirrored=False)
    image = patch.load(albedo)
    x, y = patch.x, patch.y
    u = np.clip(x / half, -1, 1)
    bow = 1 - u * u
    line = p.mouth_y + (corner_y - p.mouth_y) * u * u
    gap = (0.2 * e.mouth_open + 0.06 * max(0.0, e.smile - 0.35)) * bow
    inner_top, inner_bottom = line - 0.35 * gap, line + 0.65 * gap
    stretch = 1 - 0.18 * max(0.0, e.smile)
    dip = 1 - 0.3 * p.cupid * np.exp(-((x / 0.05) ** 2)) + 0.12 * p.cupid * np.exp(-(((np.abs(x) - 0.1) / 0.07) ** 2))
    top = inner_top - p.upper_lip * stretch * bow**0.8 * dip
    bottom = inner_bottom + p.lower_lip * stretch * bow**0.65
    present = patch.soft(half - np.abs(x))
    redness = 0.35 + 0.4 * p.lip_redness
    tint = 0.75 * scene.grooming.lip_tint
    natural = _rgb(p.skin[0] * 0.86, p.skin[1] * (0.74 - 0.16 * redness), p.skin[2] * (0.76 - 0.14 * redness))
    colour = natural * (1 - tint) + _rgb(158.0, 38.0, 52.0) * tint
    under = np.exp(-(((y - bottom - 0.035) / 0.035) ** 2)) * bow
    image *= 1 - 0.2 * under
    upper_mask = patch.soft(y - top) * patch.soft(inner_top - y) * present
    lower_mask = patch.soft(y - inner_bottom) * patch.soft(bottom - y) * present
    _mix(image, upper_mask * 0.9, colour * 0.8)
    sheen = 1 + 0.16 * np.exp(-(((y - inner_bottom - 0.45 * p.lower_lip) / 0.03) ** 2)) * bow
    _mix(image, lower_mask * 0.88, colour * sheen)
    if e.mouth_open > 0 or e.smile > 0.35:
        cavity = patch.soft(y - inner_top) * patch.soft(inner_bottom - y) * present
        inner = np.empty_like(image)
        inner[:] = _rgb(62.0, 22.0, 24.0)
        edge = inner_top + np.minimum(0.085, gap * 0.8)
        arch = np.clip(1.05 - (x / (0.82 * half)) ** 2, 0, 1)
        gaps = 1 - 0.12 * np.exp(-(((np.abs(x) % 0.075) - 0.0375) ** 2) / 0.00005)
        _mix(inner, patch.soft(edge - y) * np.minimum(arch * 1.6, 1), _rgb(218.0, 210.0, 197.0))
        inner *= gaps * (0.55 + 0.45 * arch)
        _mix(image, cavity, inner)
    closed = np.exp(-(((y - line) / 0.016) ** 2)) * present * np.clip(1 - gap * 30, 0, 1)
    _mix(image, closed * 0.72, _rgb(66.0, 28.0, 28.0))
    corners = np.exp(-(((np.abs(x) - half) / 0.035) ** 2 + ((y - corner_y) / 0.03) ** 2))
    image *= 1 - 0.45 * corners
    patch.store(albedo, image)


def _paint_beard(albedo: np.ndarray, head: Head, grooming: Grooming) -> None:
    p = head.person
    patch = _Patch(head.chart, -1.15, 0.35, 1.15, p.chin_y + 0.2, mirrored=False)
    image = patch.load(albedo)
    x, y = np.abs(patch.x), patch.y
    cheek_line = 0.62 + 0.55 * np.clip((0.95 - x) / 0.5, 0, 1) + (0.08 if p.face_texture & 1 else -0.05)
    jaw = np.clip((y - cheek_line) / 0.12, 0, 1)
    half = p.mouth_width * 1.05
    moustache = np.clip((half + 0.1 - x) / 0.08, 0, 1) * np.clip((y - p.nose_length - 0.05) / 0.05, 0, 1)
    mask = np.maximum(jaw, moustache)
    lips = np.clip(1.3 - np.sqrt((x / half) ** 2 + ((y - p.mouth_y - 0.02) / 0.17) ** 2), 0, 0.3) / 0.3
    mask = mask * (1 - lips)
    rows, columns = (patch.y * 300 + 4000).astype(np.intp) & 511, (patch.x * 300 + 4000).astype(np.intp) & 511
    strands = 0.75 + 0.35 * strand_tiles()[2][rows, columns]
    _mix(image, np.clip(mask * strands * min(0.85, grooming.beard * 0.8), 0, 0.9), _rgb(*(0.6 * h + 8 for h in p.hair)))
    patch.store(albedo, image)


def _paint_glasses(albedo: np.ndarray, chart: Chart, p: Identity, opacity: float) -> None:
    patch = _Patch(chart, -1.05, -0.4, 1.05, 0.45, mirrored=False)
    image = patch.load(albedo)
    x, y = np.abs(patch.x), patch.y
    radius = (np.abs((x - p.eye_x - 0.02) / 0.34) ** 3.2 + np.abs((y - 0.04) / 0.25) ** 3.2) ** (1 / 3.2)
    frame = np.clip((0.035 - np.abs(radius - 1) * 0.28) * chart.density, 0, 1)
    bridge = np.clip((0.03 - np.abs(y + 0.05 - 0.05 * x)) * chart.density, 0, 1) * (x < p.eye_x - 0.3)
    temple = np.clip((0.03 - np.abs(y + 0.06)) * chart.density, 0, 1) * (x > p.eye_x + 0.35)
    frame = np.maximum(np.maximum(frame, bridge), temple)
    _mix(image, frame * opacity, _rgb(34.0, 28.0, 28.0))
    patch.store(albedo, image)
