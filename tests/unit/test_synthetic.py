"""Synthetic photos: pure functions of their arguments, with landmarks that fit the pose, and resumable on disk."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from pipeline.config.errors import UserError
from preprocess.cli import app
from preprocess.synthetic import photo_truth, render_photo, write_photos
from preprocess.synthetic.rng import Draws

SIZE_PX = 168


def _files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def _write(out: Path, identities: int = 3, photos: int = 2, seed: int = 5, workers: int = 1) -> dict[str, bytes]:
    write_photos(out, identities, photos, seed, size_px=96, quality=90, workers=workers)
    return _files(out)


def test_the_same_arguments_give_the_same_photo_whatever_came_before() -> None:
    first = render_photo(3, 4, 5)
    for identity in range(6):  # evicts the cached head
        render_photo(3, identity, 0)
    again = render_photo(3, 4, 5)
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.landmarks, again.landmarks)
    assert first.image.shape == (SIZE_PX, SIZE_PX, 3)
    assert first.image.dtype == np.uint8


def test_every_argument_changes_the_photo() -> None:
    photos = [render_photo(*key).image for key in [(3, 4, 5), (3, 4, 6), (3, 5, 5), (4, 4, 5)]]
    for i, a in enumerate(photos):
        for b in photos[:i]:
            assert np.abs(a.astype(int) - b).mean() > 5


def test_large_seeds_and_numbers_have_streams_of_their_own() -> None:
    keys = [(0, 0, None), (0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (2**63 - 1, 2**40, 2**40)]
    assert len({Draws(*key).uniform() for key in keys}) == len(keys)


def test_truth_without_pixels_is_the_photos_truth() -> None:
    photo, truth = render_photo(1, 2, 3), photo_truth(1, 2, 3)
    assert np.array_equal(photo.landmarks, truth.landmarks)
    assert np.array_equal(photo.bbox, truth.bbox)
    assert (photo.yaw, photo.pitch, photo.roll) == (truth.yaw, truth.pitch, truth.roll)


def test_landmarks_fit_the_pose_and_the_box() -> None:
    truths = [photo_truth(1, identity, photo) for identity in range(40) for photo in range(3)]
    left, right, nose, mouth_left, mouth_right = np.stack([t.landmarks for t in truths]).transpose(1, 0, 2)
    boxes = np.stack([t.bbox for t in truths])
    points = np.stack([left, right, nose, mouth_left, mouth_right])
    assert (points > boxes[:, :2]).all()
    assert (points < boxes[:, 2:]).all()
    assert (boxes >= 0).all()
    assert (boxes <= SIZE_PX - 1).all()
    roll = np.array([t.roll for t in truths])
    across = right - left
    angle = np.degrees(np.arctan2(across[:, 1], across[:, 0]))
    # pitch turns part of the yaw, and asymmetry and perspective tilt the eyes a little
    assert np.abs(angle - roll).max() < 12
    assert abs(np.median(angle - roll)) < 1.5
    # the nose leaves the middle of the eyes on the side the face turns to, once the roll is undone
    radians = np.radians(roll)
    offset = nose - (left + right) / 2
    sideways = offset[:, 0] * np.cos(radians) + offset[:, 1] * np.sin(radians)
    yaw = np.array([t.yaw for t in truths])
    assert np.corrcoef(sideways, yaw)[0, 1] > 0.95
    assert np.abs(yaw).max() <= 30
    assert np.abs(yaw).max() > 25
    assert np.abs([t.pitch for t in truths]).max() <= 15
    assert np.abs(roll).max() <= 20


def test_frontal_pose_has_level_eyes() -> None:
    near = [t for i in range(150) for t in [photo_truth(2, i, 0, size_px=64)] if abs(t.yaw) < 5 and abs(t.pitch) < 5]
    assert len(near) >= 3
    for truth in near:
        across = truth.landmarks[1] - truth.landmarks[0]
        assert math.degrees(math.atan2(across[1], across[0])) == pytest.approx(truth.roll, abs=4)


def test_iris_lies_at_the_eye_landmark() -> None:
    """Truth and pixels agree: an eye varies far more than the cheek below it."""
    spreads = []
    for identity in range(12):
        photo = render_photo(9, identity, 0)
        grey = cv2.cvtColor(photo.image, cv2.COLOR_RGB2GRAY).astype(float)
        eye, nose = photo.landmarks[0], photo.landmarks[2]
        cheek = eye + (photo.landmarks[3] - eye) * 0.55 + (eye - nose) * np.array([0.15, 0.0])
        around = [grey[int(y) - 4 : int(y) + 5, int(x) - 6 : int(x) + 7].std() for x, y in (eye, cheek)]
        spreads.append(around[0] / around[1])
    assert np.median(spreads) > 2


def test_photo_scales_with_its_size() -> None:
    small, large = photo_truth(1, 2, 3, size_px=84), photo_truth(1, 2, 3, size_px=168)
    assert np.abs(small.landmarks * 2 - large.landmarks).max() < 0.6


@pytest.mark.parametrize(("seed", "size_px"), [(-1, 168), (0, 20), (0, 97)])
def test_arguments_out_of_range_are_refused(seed: int, size_px: int) -> None:
    with pytest.raises(ValueError, match="size_px"):
        render_photo(seed, 0, 0, size_px)


def test_any_number_of_workers_writes_the_same_bytes(tmp_path: Path) -> None:
    assert _write(tmp_path / "one", workers=1) == _write(tmp_path / "two", workers=2)


def test_folder_and_sidecar(tmp_path: Path) -> None:
    files = _write(tmp_path / "out")
    table = pq.read_table(tmp_path / "out" / "annotations.parquet").to_pylist()
    assert [row["path"] for row in table] == [f"person-{i:05d}/{p:04d}.jpg" for i in range(3) for p in range(2)]
    assert {"annotations.parquet", "synthetic.json", *(row["path"] for row in table)} == set(files)
    truth = photo_truth(5, 1, 1, size_px=96)
    assert table[3]["identity"] == "person-00001"
    assert table[3]["bbox"] == truth.bbox.tolist()
    assert table[3]["landmarks"] == truth.landmarks.ravel().tolist()
    assert table[3]["yaw"] == pytest.approx(truth.yaw)
    stored = cv2.imread(str(tmp_path / "out" / table[3]["path"]))[..., ::-1]
    assert np.abs(stored.astype(int) - render_photo(5, 1, 1, size_px=96).image).mean() < 8


def test_resume_renders_only_what_is_missing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    whole = _write(out)
    (out / "annotations.parquet").unlink()
    (out / "person-00001" / "0001.jpg").unlink()
    (out / "person-00002" / "0000.jpg").write_bytes(b"")  # what a power cut can leave
    (out / "person-00001" / ".0001.jpg.tmp").write_bytes(b"half")
    kept = out / "person-00000" / "0000.jpg"
    before_ns = kept.stat().st_mtime_ns
    summary = write_photos(out, 3, 2, 5, size_px=96, quality=90, workers=1)
    assert summary.num_rendered == 2
    assert summary.num_photos == 6
    assert kept.stat().st_mtime_ns == before_ns
    assert _files(out) == whole


def test_more_photos_extend_a_folder(tmp_path: Path) -> None:
    _write(tmp_path / "out", identities=2, photos=1)
    assert _write(tmp_path / "out") == _write(tmp_path / "whole")


def test_other_settings_or_strangers_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    _write(out)
    with pytest.raises(UserError, match="seed 5"):
        _write(out, seed=6)
    with pytest.raises(UserError, match="num_identities 3"):
        _write(out, identities=2)
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    (stranger / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(UserError, match="not empty"):
        _write(stranger)
    with pytest.raises(UserError, match="is a file"):
        _write(stranger / "holiday.jpg")
    with pytest.raises(UserError, match="--photos"):
        _write(tmp_path / "new", photos=0)


def test_command_writes_photos_and_says_so(tmp_path: Path) -> None:
    out = tmp_path / "photos"
    options = ["--identities", "2", "--photos", "2", "--size", "64", "--workers", "1"]
    result = CliRunner().invoke(app, ["synth", str(out), *options])
    assert result.exit_code == 0, result.output
    assert "4 photos of 2 identities" in result.output
    assert len(list(out.glob("person-*/*.jpg"))) == 4
    again = CliRunner().invoke(app, ["synth", str(out), *options])
    assert "0 rendered now" in again.output
