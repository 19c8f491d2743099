"""The default detector finds synthetic faces where they truly are."""

from __future__ import annotations

import numpy as np

from preprocess.detect import choose_face, load_detector
from preprocess.synthetic import render_photo

NUM_IDENTITIES, PHOTOS_EACH = 40, 2


def test_default_detector_finds_the_faces() -> None:
    photos = [render_photo(31, i, p) for i in range(NUM_IDENTITIES) for p in range(PHOTOS_EACH)]
    detector = load_detector("mtcnn", None, min_face_px=40)
    errors = []
    for photo in photos:
        [faces] = detector.detect([photo.image])
        face, _ = choose_face(faces, "largest", (168, 168), min_score=0.8, min_face_px=40, near_box=photo.bbox)
        if face is not None:
            interocular = np.linalg.norm(photo.landmarks[1] - photo.landmarks[0])
            errors.append(np.linalg.norm(face.landmarks - photo.landmarks, axis=1).mean() / interocular)
    assert len(errors) >= 0.98 * len(photos)
    assert np.median(errors) <= 0.10
