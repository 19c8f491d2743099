"""One photo of one synthetic person, with its true box and landmarks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from preprocess.synthetic.background import render_background
from preprocess.synthetic.features import eye_centre, mouth_corner, paint_features
from preprocess.synthetic.geometry import (
    Camera,
    Hit,
    Window,
    enlarge,
    heights,
    intersect,
    make_body,
    normals,
    profile,
    refine,
    rotation,
)
from preprocess.synthetic.hair import contact_shadow, covers_ears, render_hair
from preprocess.synthetic.head import HEAD_TOP, Head, build_head
from preprocess.synthetic.rng import Draws, FloatArray
from preprocess.synthetic.scene import Scene, sample_scene
from preprocess.synthetic.shading import develop, highlight, illuminate, linear, over

MIN_SIZE_PX = 64


@dataclass(frozen=True)
class PhotoTruth:
    """What is true of a photo."""

    bbox: NDArray[np.float32]  # x0, y0, x1, y1 in pixels: hairline to chin, cheek to cheek
    landmarks: NDArray[
        np.float32
    ]  # [5, 2] pixels: left eye, right eye (as seen), nose tip, left and right mouth corner
    yaw: float  # degrees; positive turns the face to the image's right
    pitch: float  # degrees; positive looks down
    roll: float  # degrees; positive turns the face clockwise in the image


@dataclass(frozen=True)
class RenderedPhoto(PhotoTruth):
    """A photo and what is true of it."""

    image: NDArray[np.uint8]  # [H, W, 3] RGB


def render_photo(seed: int, identity: int, photo: int, size_px: int = 168) -> RenderedPhoto:
    """Render one photo; a pure function of its arguments, whatever was rendered before.

    Args:
        seed, identity, photo: non-negative integers below 2^63 that name the photo.
        size_px: width and height, even, at least 64.

    Raises:
        ValueError: when an argument is out of range.
    """
    head, scene, camera, draws = _set_up(seed, identity, photo, size_px)
    landmarks, box = _truth(head, scene, camera, size_px)
    image = render_background(draws, size_px)
    _compose(image, head, scene, camera, draws)
    return RenderedPhoto(box, landmarks, scene.yaw, scene.pitch, scene.roll, develop(image, scene, draws))


def photo_truth(seed: int, identity: int, photo: int, size_px: int = 168) -> PhotoTruth:
    """Box, landmarks and pose of `render_photo` with the same arguments, without its pixels."""
    head, scene, camera, _ = _set_up(seed, identity, photo, size_px)
    landmarks, box = _truth(head, scene, camera, size_px)
    return PhotoTruth(box, landmarks, scene.yaw, scene.pitch, scene.roll)


def _set_up(seed: int, identity: int, photo: int, size_px: int) -> tuple[Head, Scene, Camera, Draws]:
    if size_px < MIN_SIZE_PX or size_px % 2 or min(seed, identity, photo) < 0:
        raise ValueError(f"size_px must be even and >= {MIN_SIZE_PX}, seed, identity and photo >= 0")
    head = _cached_head(seed, identity, size_px)
    draws = Draws(seed, identity, photo)
    scene = sample_scene(draws, head.person)
    return head, scene, _camera(scene, size_px, rotation(scene.yaw, scene.pitch, scene.roll)), draws


@lru_cache(maxsize=4)
def _cached_head(seed: int, identity: int, size_px: int) -> Head:
    return build_head(seed, identity, size_px)


def _camera(scene: Scene, size_px: int, matrix: tuple[tuple[float, ...], ...]) -> Camera:
    return Camera(matrix, scene.centre_x * size_px, scene.centre_y * size_px, scene.scale * size_px, scene.distance)


def _compose(image: FloatArray, head: Head, scene: Scene, camera: Camera, draws: Draws) -> None:
    """Lay shoulders, head, ears and hair over the background, in place."""
    size = image.shape[1]
    person, light, groom = head.person, scene.light, scene.grooming
    hair = render_hair(person, groom, camera, size, light, draws)
    over(hair.window.of(image), hair.back, hair.back_alpha)
    _draw_shoulders(image, head, scene, size, draws)
    m = camera.matrix
    key = light.key_direction
    key_in_head = tuple(sum(key[row] * m[row][column] for row in range(3)) for column in range(3))
    smile = scene.expression.smile
    relief = head.relief + smile * head.smile_relief if smile > 0 else head.relief
    reach = max(person.cranium_width, person.cheek_width) + 0.05
    window = camera.window((-reach, HEAD_TOP, -0.3), (reach, person.chin_y, 1.3), size)
    height = (head.chart, np.ascontiguousarray(relief[..., 0]))
    coarse = intersect(head.body, camera, window, num_steps=5, relief=height)
    hit = refine(head.body, camera, window, coarse)
    sampled = head.chart.sample(cv2.merge([relief, _cast_shadow(head, key_in_head)]), hit.x, hit.y)
    displacement, slope_x, slope_y, lit = cv2.split(sampled)
    n = normals(head.body, hit, m, (displacement, slope_x, slope_y))
    albedo = head.chart.sample(paint_features(head, scene, key_in_head), hit.x, hit.y).astype(np.float32)
    albedo *= 1.0 / 255.0
    skin = np.stack(cv2.split(albedo * albedo))
    skin[0] *= 1.0 + scene.redness
    face = skin * illuminate(n, light, True, lit)
    shine = highlight(n, light, 32) * lit
    shine *= 0.1 * scene.skin_shine * light.key_colour[1]
    shine += 0.06 * light.ambient[0][1] * (1.0 - np.abs(n[2])) ** 3
    face += shine
    face *= enlarge([contact_shadow(person, groom, coarse)], window)[0]
    coverage = np.clip(0.5 + hit.inside * camera.pixels, 0, 1)
    over(window.of(image), face, coverage)
    for side in (-1.0, 1.0):
        if side * scene.yaw > 12.0 or covers_ears(groom):  # turned away or under the hair
            continue
        _draw_ear(image, head, scene, camera, hit, window, side)
    over(hair.window.of(image), hair.front, hair.front_alpha)


def _cast_shadow(head: Head, key: tuple[float, ...]) -> FloatArray:
    """Share [h, w] of the key light that brow, nose and cheeks let through, in the chart."""
    surface = head.surface
    density = head.chart.density * 0.25
    height, width = surface.shape
    blocked = np.zeros_like(surface)
    for step in range(1, 7):
        reach = 0.09 * step
        shift = np.array([[1, 0, -key[0] * reach * density], [0, 1, -key[1] * reach * density]], np.float64)
        moved = cv2.warpAffine(surface, shift, (width, height), borderMode=cv2.BORDER_REPLICATE)
        moved -= surface
        moved -= key[2] * reach
        np.maximum(blocked, moved * (1.0 / (0.03 + 0.25 * reach)), out=blocked)
    lit = 1.0 - 0.7 * np.minimum(blocked, 1.0)
    lit = cv2.GaussianBlur(lit, (3, 3), 0.7)
    return cv2.resize(lit, head.chart.shape[::-1], interpolation=cv2.INTER_LINEAR)


def _draw_ear(
    image: FloatArray, head: Head, scene: Scene, camera: Camera, face: Hit, face_window: Window, side: float
) -> None:
    """An ear: a flat ellipsoid at the side of the head, where it is in front of the head's surface."""
    p = head.person
    width = float(head.body.width[head.body.rows(np.array(0.3, np.float32))])
    centre = np.array([side * (width + 0.015), 0.33, -0.08])
    axes = (0.1, p.ear_size, 0.2)
    low, high = (centre - axes), (centre + axes)
    window = camera.window(tuple(low), tuple(high), image.shape[1])
    if window.empty:
        return
    rays = camera.rays(window)
    origin = [(rays[i] - float(centre[i])) / axes[i] for i in range(3)]
    direction = [rays[i + 3] / axes[i] for i in range(3)]
    a = sum(v * v for v in direction)
    b = sum(u * v for u, v in zip(origin, direction, strict=True))
    gap = (b * b - a * (sum(u * u for u in origin) - 1.0)) / a
    z = (np.sqrt(np.maximum(gap, 0) * a) - b) / a
    px, py, pz = (u + z * v for u, v in zip(origin, direction, strict=True))
    raw = (px / axes[0], py / axes[1], pz / axes[2])
    scale = 1.0 / np.sqrt(sum(v * v for v in raw) + 1e-9)
    m = camera.matrix
    n = tuple((raw[0] * m[i][0] + raw[1] * m[i][1] + raw[2] * m[i][2]) * scale for i in range(3))
    cover = np.clip(0.5 + (1 - np.sqrt(np.maximum(1 - gap, 0))) * 0.15 * camera.pixels, 0, 1)
    cover[_behind(face, face_window, window, z)] = 0.0
    folds = 1 - 0.5 * np.exp(-(((py - 0.1) / 0.42) ** 2 + ((pz - 0.15) / 0.4) ** 2))
    folds -= 0.18 * np.exp(-(((np.sqrt(py * py + pz * pz) - 0.72) / 0.1) ** 2))
    tone = linear(p.skin) * np.array([1.0, 0.86, 0.84], np.float32)[:, None, None]
    over(window.of(image), tone * illuminate(n, scene.light, True) * folds, cover)


def _behind(face: Hit, face_window: Window, window: Window, depth: FloatArray) -> NDArray[np.bool_]:
    """Where a layer of camera depth `depth` in `window` lies behind the face."""
    hidden = np.zeros(depth.shape, np.bool_)
    left, right = max(window.left, face_window.left), min(window.right, face_window.right)
    top, bottom = max(window.top, face_window.top), min(window.bottom, face_window.bottom)
    if right > left and bottom > top:
        ours = (slice(top - window.top, bottom - window.top), slice(left - window.left, right - window.left))
        theirs = (
            slice(top - face_window.top, bottom - face_window.top),
            slice(left - face_window.left, right - face_window.left),
        )
        hidden[ours] = (face.camera_z[theirs] > depth[ours] + 0.02) & (face.inside[theirs] > 0)
    return hidden


def _draw_shoulders(image: FloatArray, head: Head, scene: Scene, size: int, d: Draws) -> None:
    """Neck and clothed shoulders; they follow the head's turn only partly."""
    p = head.person
    y = heights(0.5, 3.6)
    width = profile(
        y,
        [
            (1.2, p.neck_width),
            (1.8, p.neck_width * 1.05),
            (2.05, p.neck_width + 0.35),
            (2.35, 1.55),
            (2.8, 2.0),
            (3.6, 2.15),
        ],
        0.07,
    )
    depth = profile(y, [(1.5, 0.62), (2.3, 0.75), (3.0, 0.95)], 0.1)
    body = make_body(0.5, 3.6, width, depth, np.full_like(y, -0.38))
    turn = d.uniform(0.2, 0.6)
    camera = _camera(scene, size, rotation(scene.yaw * turn, scene.pitch * 0.4, scene.roll * 0.55))
    top = int(max(0.0, camera.centre_y + 0.45 * camera.pixels))
    window = Window(0, min(top, size - 2) // 2 * 2, size // 2 * 2, size // 2 * 2)
    coarse = intersect(body, camera, window, num_steps=2)
    lights = illuminate(normals(body, coarse, camera.matrix), scene.light, True)
    below_chin = np.clip((coarse.y - (p.chin_y - 0.35)) / 0.75, 0, 1)
    skin = linear(p.skin) * np.array([1.0, 0.93, 0.9], np.float32)[:, None, None] * lights
    skin *= 0.38 + 0.62 * below_chin * below_chin
    neckline = 1.95 + d.uniform(-0.15, 0.1) + d.uniform(0.0, 0.6) * np.clip(1 - np.abs(coarse.x) / 0.7, 0, 1)
    under = coarse.y - neckline  # positive on the cloth
    lights *= 1 + 0.13 * d.field(under.shape, 6) - 0.3 * np.exp(-(((under - 0.04) / 0.03) ** 2))
    fields = enlarge([coarse.inside, under, *skin, *(lights * _cloth(d, coarse))], window)
    layer = np.stack(fields[2:5])
    over(layer, np.stack(fields[5:]), np.clip(fields[1] * camera.pixels + 0.5, 0, 1))
    over(window.of(image), layer, np.clip(fields[0] * camera.pixels + 0.5, 0, 1))


def _cloth(d: Draws, hit: Hit) -> FloatArray:
    """Linear colour [3, h, w] of a garment: plain, striped or checked."""
    first, second = (np.array(d.colour(0.08, 0.85, 0.3), np.float32)[:, None, None] for _ in range(2))
    kind, stripe = d.integer(6), d.uniform(8.0, 20.0)
    if kind > 2:
        return first * first
    stripes = [0.5 + 0.5 * np.clip(4 * np.sin(v * stripe), -1, 1) for v in (hit.x, hit.y)]
    share = 0.5 * (stripes[0] + stripes[1]) if kind == 2 else stripes[kind]
    colour = first + share * (second - first)
    return colour * colour


def _truth(head: Head, scene: Scene, camera: Camera, size_px: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Landmarks [5, 2] and box [4] in pixels, from the same geometry that was rendered."""
    p = head.person
    half, corner_y = mouth_corner(p, scene.expression)
    spots = [eye_centre(p, -1.0), eye_centre(p, 1.0), (0.0, p.nose_length - 0.1), (-half, corner_y), (half, corner_y)]
    x = np.array([s[0] for s in spots], np.float32)
    y = np.array([s[1] for s in spots], np.float32)
    smile = max(0.0, scene.expression.smile)
    landmarks = camera.project(_surface_points(head, smile, x, y))
    angles = np.linspace(-math.radians(80), math.radians(80), 17, dtype=np.float32)
    levels = np.linspace(max(p.hairline_y, -0.9), p.chin_y - 0.01, 16, dtype=np.float32)
    rows = head.body.rows(levels)
    outline_x = np.sin(angles)[None, :] * head.body.width[rows][:, None]
    outline_y = np.repeat(levels[:, None], len(angles), 1)
    outline = camera.project(_surface_points(head, smile, outline_x.ravel(), outline_y.ravel()))
    box = np.concatenate([outline.min(0), outline.max(0)])
    return landmarks.astype(np.float32), np.clip(box, 0, size_px - 1).astype(np.float32)


def _surface_points(head: Head, smile: float, x: FloatArray, y: FloatArray) -> np.ndarray:
    """Points [N, 3] of the face's front at frontal positions."""
    rows = head.body.rows(y)
    ratio = np.clip(x / head.body.width[rows], -1, 1)
    z = head.body.centre[rows] + head.body.depth[rows] * np.sqrt(1 - ratio * ratio)
    z = z + head.chart.sample(head.relief, x[:, None], y[:, None])[:, 0, 0]
    z = z + smile * head.chart.sample(head.smile_relief, x[:, None], y[:, None])[:, 0, 0]
    return np.stack([x, y, z], 1).astype(np.float64)
