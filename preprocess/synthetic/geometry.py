"""Lathe-like bodies and the rays that meet them.

A body is a stack of ellipses: at each height y a half-width, a half-depth and a centre along z. The face adds a relief,
a displacement along z drawn in the frontal chart. A ray meets an ellipse in closed form; because height and relief
depend on where it meets, the solution is iterated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from preprocess.synthetic.rng import FloatArray

Rays = tuple[FloatArray, ...]  # origin and direction, three arrays each, in a body's frame per unit of camera depth
_ROWS = 256
CHART_X, CHART_TOP, CHART_BOTTOM = 1.25, -1.75, 2.0  # the frontal chart spans x in ±CHART_X, head units


@dataclass(frozen=True)
class Chart:
    """Frontal drawing plane of the face: pixel (column, row) = ((x + CHART_X), (y - CHART_TOP)) * density."""

    density: float  # pixels per head unit

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return math.ceil((CHART_BOTTOM - CHART_TOP) * self.density) + 1, math.ceil(2 * CHART_X * self.density) + 1

    def axes(self) -> tuple[FloatArray, FloatArray]:
        """x of every column, y of every row, head units."""
        height, width = self.shape
        return (
            np.arange(width, dtype=np.float32) / self.density - CHART_X,
            np.arange(height, dtype=np.float32) / self.density + CHART_TOP,
        )

    def sample(self, image: np.ndarray, x: FloatArray, y: FloatArray) -> np.ndarray:
        """Bilinear look-up of a chart image at head coordinates."""
        return cv2.remap(
            image,
            (x + CHART_X) * self.density,
            (y - CHART_TOP) * self.density,
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )


@dataclass(frozen=True)
class Body:
    """Ellipse per height: tables [256] over y in [top, bottom], with what rays and normals need of them."""

    top: float
    bottom: float
    width: FloatArray
    depth: FloatArray
    centre: FloatArray
    inverse_width: FloatArray
    inverse_depth: FloatArray
    width_pull: FloatArray  # slope of the width over the width
    depth_pull: FloatArray
    centre_slope: FloatArray

    def rows(self, y: FloatArray) -> np.ndarray:
        """Table rows of heights."""
        scaled = (y - self.top) * ((_ROWS - 1) / (self.bottom - self.top))
        return np.clip(scaled, 0, _ROWS - 1).astype(np.intp)


def make_body(top: float, bottom: float, width: FloatArray, depth: FloatArray, centre: FloatArray) -> Body:
    """Build a body from its three tables; slopes by central differences."""
    step = (bottom - top) / (_ROWS - 1)
    tables = (
        width, depth, centre, 1.0 / width, 1.0 / depth,
        np.gradient(width, step) / width, np.gradient(depth, step) / depth, np.gradient(centre, step),
    )  # fmt: skip
    return Body(top, bottom, *(t.astype(np.float32) for t in tables))


def profile(y: FloatArray, knots: list[tuple[float, float]], smooth: float) -> FloatArray:
    """Smooth curve through about the given (y, value) knots; `smooth` is the blur in units of y."""
    values = np.interp(y, [k[0] for k in knots], [k[1] for k in knots]).astype(np.float32)
    sigma = smooth / float(y[1] - y[0])
    return cv2.GaussianBlur(values[:, None], (1, 0), sigmaX=1, sigmaY=sigma, borderType=cv2.BORDER_REPLICATE)[:, 0]


def heights(top: float, bottom: float) -> FloatArray:
    """The y of every table row."""
    return np.linspace(top, bottom, _ROWS, dtype=np.float32)


def rotation(yaw: float, pitch: float, roll: float) -> tuple[tuple[float, ...], ...]:
    """Rows of the matrix that turns head coordinates into the camera's; degrees, signs as in `Scene`."""
    a, b, c = math.radians(yaw), math.radians(pitch), math.radians(roll)
    about_y = np.array([[math.cos(a), 0, math.sin(a)], [0, 1, 0], [-math.sin(a), 0, math.cos(a)]])
    about_x = np.array([[1, 0, 0], [0, math.cos(b), math.sin(b)], [0, -math.sin(b), math.cos(b)]])
    about_z = np.array([[math.cos(c), -math.sin(c), 0], [math.sin(c), math.cos(c), 0], [0, 0, 1]])
    return tuple(tuple(float(v) for v in row) for row in about_z @ about_x @ about_y)


@dataclass(frozen=True)
class Window:
    """Rectangle of an image, pixels; right and bottom are one past the last."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def empty(self) -> bool:
        """True when the rectangle holds no pixel."""
        return self.right <= self.left or self.bottom <= self.top

    def of(self, image: FloatArray) -> FloatArray:
        """View of the rectangle in a planar image [..., H, W]."""
        return image[..., self.top : self.bottom, self.left : self.right]


@dataclass(frozen=True)
class Camera:
    """Pinhole camera in front of a body frame's origin."""

    matrix: tuple[tuple[float, ...], ...]
    centre_x: float  # image position of the origin, pixels
    centre_y: float
    pixels: float  # pixels per head unit at the origin's depth
    distance: float

    def rays(self, window: Window, stride: int = 1) -> Rays:
        """Rays of a window's pixels, or with stride 2 of the centres of 2×2 blocks, as `cv2.resize` sees them."""
        offset = 0.5 * (stride - 1)
        columns = np.arange(window.left, window.right, stride, dtype=np.float32)[None, :] + offset
        rows = np.arange(window.top, window.bottom, stride, dtype=np.float32)[:, None] + offset
        a, b = (columns - self.centre_x) / self.pixels, (rows - self.centre_y) / self.pixels
        m = self.matrix
        origin = [a * m[0][i] + b * m[1][i] for i in range(3)]
        direction = [m[2][i] - origin[i] * (1.0 / self.distance) for i in range(3)]
        return (*origin, *direction)

    def window(self, low: tuple[float, float, float], high: tuple[float, float, float], size_px: int) -> Window:
        """Even-sized window of the image that holds a box of the body's frame."""
        corners = np.array([[x, y, z] for x in (low[0], high[0]) for y in (low[1], high[1]) for z in (low[2], high[2])])
        spots = self.project(corners)
        (left, top), (right, bottom) = spots.min(0), spots.max(0)
        limit = size_px // 2
        edges = [min(limit, max(0, int(v) // 2)) * 2 for v in (left - 2, top - 2, right + 4, bottom + 4)]
        return Window(*edges)

    def project(self, points: np.ndarray) -> np.ndarray:
        """Image positions [N, 2] of body points [N, 3]."""
        camera = points @ np.array(self.matrix).T
        scale = self.pixels / (1.0 - camera[:, 2:] / self.distance)
        return camera[:, :2] * scale + np.array([self.centre_x, self.centre_y])


@dataclass(frozen=True)
class Hit:
    """Where rays meet a body: points in its frame, camera depth and how far inside the outline they pass."""

    x: FloatArray
    y: FloatArray
    z: FloatArray
    camera_z: FloatArray
    inside: FloatArray  # head units; negative where the ray misses
    rows: np.ndarray


def intersect(
    body: Body,
    camera: Camera,
    window: Window,
    num_steps: int,
    relief: tuple[Chart, FloatArray] | None = None,
) -> Hit:
    """Meet a window's rays with a body at the point nearest to the camera; rays that miss get their closest approach.

    Bodies are smooth, so this answers for every second pixel each way: half the window's height and width.
    `refine` or `enlarge` go on to full resolution.

    Args:
        relief: chart and displacement [h, w] along z.
    """
    ox, oy, oz, dx, dy, dz = camera.rays(window, stride=2)
    depth = np.full_like(ox, 0.9)
    for step in range(num_steps):
        y = oy + depth * dy
        rows = body.rows(y)
        inverse_w, inverse_d = body.inverse_width[rows], body.inverse_depth[rows]
        lift = body.centre[rows]
        if relief is not None:
            lift += relief[0].sample(relief[1], ox + depth * dx, y)
        px, pz = ox * inverse_w, (oz - lift) * inverse_d
        qx, qz = dx * inverse_w, dz * inverse_d
        a = 1.0 / (qx * qx + qz * qz)
        b = (px * qx + pz * qz) * a
        gap = b * b - (px * px + pz * pz - 1.0) * a
        new_depth = np.sqrt(np.maximum(gap, 0.0)) - b
        depth = new_depth if step < 2 else 0.5 * (depth + new_depth)
    inside = (1.0 - np.sqrt(np.maximum(1.0 - gap / a, 0.0))) / inverse_w
    np.minimum(inside, y - body.top, out=inside)
    np.minimum(inside, body.bottom - y, out=inside)
    return Hit(ox + depth * dx, y, oz + depth * dz, depth, inside, rows)


def enlarge(fields: list[FloatArray], window: Window) -> list[FloatArray]:
    """Bring half-resolution fields [h/2, w/2] of a window to full resolution [h, w]."""
    shape = (window.right - window.left, window.bottom - window.top)
    full: list[FloatArray] = []
    for first in range(0, len(fields), 4):  # OpenCV resizes up to four channels at once
        full += cv2.split(cv2.resize(cv2.merge(fields[first : first + 4]), shape))
    return full


def refine(body: Body, camera: Camera, window: Window, coarse: Hit) -> Hit:
    """Full-resolution hits: the depth is interpolated, the points follow from the pixels' own rays."""
    depth, inside = enlarge([coarse.camera_z, coarse.inside], window)
    ox, oy, oz, dx, dy, dz = camera.rays(window)
    y = oy + depth * dy
    return Hit(ox + depth * dx, y, oz + depth * dz, depth, inside, body.rows(y))


def normals(
    body: Body, hit: Hit, matrix: tuple[tuple[float, ...], ...], relief: tuple[FloatArray, ...] | None = None
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Unit normals in the camera's frame.

    Args:
        relief: displacement and its slopes along x and y at the hits.
    """
    rows = hit.rows
    inverse_w, inverse_d = body.inverse_width[rows], body.inverse_depth[rows]
    lift = body.centre[rows] if relief is None else body.centre[rows] + relief[0]
    px, pz = hit.x * inverse_w, (hit.z - lift) * inverse_d
    nz = pz * inverse_d
    nx = px * inverse_w
    ny = px * px * body.width_pull[rows]
    ny += pz * pz * body.depth_pull[rows]
    ny += nz * body.centre_slope[rows]
    np.negative(ny, out=ny)
    if relief is not None:
        nx = nx - nz * relief[1]
        ny -= nz * relief[2]
    scale = 1.0 / np.sqrt(nx * nx + ny * ny + nz * nz + 1e-12)
    nx, ny, nz = nx * scale, ny * scale, nz * scale
    m = matrix
    return (
        nx * m[0][0] + ny * m[0][1] + nz * m[0][2],
        nx * m[1][0] + ny * m[1][1] + nz * m[1][2],
        nx * m[2][0] + ny * m[2][1] + nz * m[2][2],
    )
