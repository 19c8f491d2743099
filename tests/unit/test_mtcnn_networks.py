"""MTCNN's landmarks sit where the face is: a photo and its mirror image give the same points, and any count of
candidates is taken."""

from __future__ import annotations

import numpy as np
import pytest

from preprocess.detect import Face
from preprocess.detect.mtcnn import Mtcnn
from preprocess.synthetic import render_photo

MIRRORED = [1, 0, 2, 4, 3]


@pytest.fixture(scope="module")
def detector() -> Mtcnn:
    return Mtcnn(min_face_px=20)


def test_landmarks_lean_to_no_side(detector: Mtcnn) -> None:
    shifts = []
    for identity in range(12):
        image = render_photo(seed=3, identity=identity, photo=0).image
        faces, mirrored = detector.detect([image, np.ascontiguousarray(image[:, ::-1])])
        if len(faces) == len(mirrored) == 1:
            points, other = faces[0].landmarks, mirrored[0].landmarks[MIRRORED]
            back = np.stack([image.shape[1] - 1 - other[:, 0], other[:, 1]], axis=1)
            interocular = np.linalg.norm(points[0] - points[1])
            shifts.append((points - back)[:, 0].mean() / 2 / interocular)
    assert len(shifts) >= 10
    # run by OpenCV 5's new engine, the networks give a median of 0.07
    assert abs(np.median(shifts)) < 0.03


def test_a_photo_gives_the_same_faces_whatever_came_before(detector: Mtcnn) -> None:
    images = [render_photo(seed=4, identity=identity, photo=0).image for identity in range(4)]
    wide = np.concatenate(images, axis=1)

    def found(faces: list[Face]) -> list[list[float]]:
        return [face.landmarks.ravel().tolist() for face in faces]

    alone = found(Mtcnn(min_face_px=20).detect([images[0]])[0])
    assert found(detector.detect([wide, images[0]])[1]) == alone
    assert len(detector.detect([wide])[0]) == 4
