"""Alignment puts landmarks on the template, whatever the face's size, place and tilt; measures mean what they say."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from preprocess.align import align, is_mirrored, similarity, template
from preprocess.measure import _HEAD_MM, head_pose, phash, sharpness
from preprocess.synthetic import render_photo


def transform(
    points: npt.NDArray[np.float64], angle_deg: float, scale: float, shift: tuple[float, float]
) -> npt.NDArray:
    angle = np.radians(angle_deg)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return scale * points @ rotation.T + shift


def test_template_scales_with_the_crop() -> None:
    np.testing.assert_allclose(template(112)[0], [38.2946, 51.6963])
    np.testing.assert_allclose(template(224), 2 * template(112))


@pytest.mark.parametrize(("angle", "scale"), [(0, 1.0), (25, 0.3), (-60, 4.0), (179, 1.7)])
def test_similarity_recovers_a_known_transform(angle: float, scale: float) -> None:
    source = transform(template(112), angle, scale, (30.0, -12.0))
    matrix = similarity(source, template(112))
    np.testing.assert_allclose(source @ matrix[:, :2].T + matrix[:, 2], template(112), atol=1e-9)


def test_similarity_never_mirrors() -> None:
    mirrored = template(112) * [-1, 1]
    assert np.linalg.det(similarity(mirrored, template(112))[:, :2]) > 0


def test_similarity_is_the_least_squares_one() -> None:
    rng = np.random.default_rng(1)
    source, target = rng.normal(size=(5, 2)) * 30, rng.normal(size=(5, 2)) * 30
    # The same problem as linear least squares in (a, b, tx, ty): x' = a x - b y + tx, y' = b x + a y + ty.
    rows_x = np.c_[source[:, 0], -source[:, 1], np.ones(5), np.zeros(5)]
    rows_y = np.c_[source[:, 1], source[:, 0], np.zeros(5), np.ones(5)]
    a, b, tx, ty = np.linalg.lstsq(np.r_[rows_x, rows_y], np.r_[target[:, 0], target[:, 1]], rcond=None)[0]
    np.testing.assert_allclose(similarity(source, target), [[a, -b, tx], [b, a, ty]], atol=1e-9)


def test_coinciding_landmarks_are_refused() -> None:
    with pytest.raises(ValueError, match="coincide"):
        similarity(np.ones((5, 2)), template(112))


def test_landmarks_that_no_turn_fits_are_refused() -> None:
    with pytest.raises(ValueError, match="no turn and scale fits"):
        similarity(template(112) * 1e12, template(112))
    with pytest.raises(ValueError, match="no turn and scale fits"):
        align(np.zeros((8, 8, 3), np.uint8), template(112) * 1e12, 112)


@pytest.mark.parametrize("order", [[1, 0, 2, 4, 3], [1, 0, 2, 3, 4], [0, 1, 2, 4, 3], [3, 4, 2, 0, 1]])
def test_swapped_landmarks_are_mirrored(order: list[int]) -> None:
    """Left and right swapped, of one pair only, or the mouth before the eyes."""
    points = transform(template(112), 25, 2.0, (50.0, 40.0))
    assert not is_mirrored(points)
    assert is_mirrored(points[order])


@pytest.mark.parametrize("size", [64, 112, 160])
@pytest.mark.parametrize(("angle", "scale"), [(0, 1.0), (20, 0.5), (-35, 3.0), (10, 9.0)])
def test_landmarks_land_on_the_template(size: int, angle: float, scale: float) -> None:
    points = transform(template(112) - 56, angle, scale, (600, 500))
    photo = np.zeros((1100, 1200, 3), np.uint8)
    for x, y in points:  # a soft blob at each landmark, drawn with sub-pixel precision
        yy, xx = np.mgrid[0:1100, 0:1200]
        blob = 255 * np.exp(-((xx - x) ** 2 + (yy - y) ** 2) / (2 * (2.5 * scale) ** 2))
        photo[..., 0] = np.maximum(photo[..., 0], blob.astype(np.uint8))
    crop = align(photo, points, size)
    assert crop.shape == (size, size, 3)
    y, x = np.mgrid[0:size, 0:size]
    for target in template(size):
        near = np.hypot(x - target[0], y - target[1]) < size / 14
        weight = crop[..., 0] * near.astype(float)
        found = np.array([(x * weight).sum(), (y * weight).sum()]) / weight.sum()
        np.testing.assert_allclose(found, target, atol=0.25)


def test_outside_the_photo_is_black() -> None:
    photo = np.full((60, 60, 3), 200, np.uint8)
    crop = align(photo, template(112), 112)
    assert (crop[80:, 80:] == 0).all()
    assert (crop[:50, :50] == 200).all()


def test_large_faces_do_not_alias() -> None:
    stripes = np.zeros((1600, 1600, 3), np.uint8)
    stripes[:, ::2] = 255  # any sample without averaging is black or white, the mean is grey
    crop = align(stripes, template(112) * 12, 112)
    assert np.abs(crop[5:-5, 5:-5].astype(int) - 127).max() < 20


@pytest.mark.parametrize(("yaw", "pitch", "roll"), [(0, 0, 0), (30, 0, 0), (-20, 10, 0), (0, -15, 40), (15, 12, -25)])
def test_pose_of_a_projected_head(yaw: float, pitch: float, roll: float) -> None:
    y, p, r = np.radians([yaw, pitch, roll])
    turn_x = np.array([[1, 0, 0], [0, np.cos(p), -np.sin(p)], [0, np.sin(p), np.cos(p)]])
    turn_y = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    turn_z = np.array([[np.cos(r), -np.sin(r), 0], [np.sin(r), np.cos(r), 0], [0, 0, 1]])
    points = (_HEAD_MM @ (turn_z @ turn_y @ turn_x).T)[:, :2] * 1.3 + 100
    np.testing.assert_allclose(head_pose(points), [yaw, pitch, roll], atol=1e-6)


def test_signs_of_the_pose() -> None:
    frontal = _HEAD_MM[:, :2]
    nose_right = frontal + np.array([[0, 0], [0, 0], [8, 0], [0, 0], [0, 0]])
    nose_up = frontal + np.array([[0, 0], [0, 0], [0, -6], [0, 0], [0, 0]])
    assert head_pose(nose_right)[0] > 10
    assert head_pose(nose_up)[1] > 5
    assert head_pose(transform(frontal, 20, 1.0, (0, 0)))[2] == pytest.approx(20, abs=1)
    assert np.abs(head_pose(template(112))).max() < 20  # the crops' template has a higher nose than the median face


def test_sharpness_and_phash() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    crop = np.asarray(cv2.resize(noise, (112, 112), interpolation=cv2.INTER_CUBIC))
    blurred = np.asarray(cv2.GaussianBlur(crop, (0, 0), 3))
    assert sharpness(blurred) < sharpness(crop) / 4
    assert sharpness(np.zeros_like(crop)) == 0
    other = np.asarray(cv2.resize(noise[::-1, ::-1], (112, 112), interpolation=cv2.INTER_CUBIC))
    brighter = np.clip(crop.astype(int) + 10, 0, 255).astype(np.uint8)
    assert (phash(crop) ^ phash(brighter)).bit_count() <= 6
    assert (phash(crop) ^ phash(other)).bit_count() >= 16
    assert 0 <= phash(crop) < 2**64


def test_pose_of_rendered_heads() -> None:
    """The renderer's pitch is positive downwards."""
    photos = [render_photo(5, identity, 1) for identity in range(40)]
    found = np.array([head_pose(photo.landmarks) for photo in photos])
    true = np.array([(photo.yaw, -photo.pitch, photo.roll) for photo in photos])
    assert np.corrcoef(found[:, 0], true[:, 0])[0, 1] > 0.95
    assert np.corrcoef(found[:, 1], true[:, 1])[0, 1] > 0.8
    assert np.corrcoef(found[:, 2], true[:, 2])[0, 1] > 0.8
    assert (np.median(np.abs(found - true), axis=0) < [12, 12, 6]).all()
