"""Do two photos show one person? Needs numpy, onnxruntime and opencv-python, an exported model and YuNet's weights:

python compare_two_photos.py model.onnx face_detection_yunet.onnx one.jpg other.jpg
"""

import json
import sys

import cv2
import numpy as np
import onnxruntime


def crop_face(path, detector, spec):
    photo = cv2.imread(path)
    if photo is None:
        sys.exit(f"{path}: not a photo")
    scale = min(1.0, 640 / max(photo.shape))  # YuNet was trained for faces of 10 to 300 px
    shrunk = cv2.resize(photo, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    detector.setInputSize(shrunk.shape[1::-1])
    faces = detector.detect(shrunk)[1]
    if faces is None:
        sys.exit(f"{path}: no face")
    largest = max(faces, key=lambda face: face[2] * face[3])  # x, y, width, height, five points, score
    landmarks = (largest[4:14].reshape(5, 2) + 0.5) / scale - 0.5  # in the photo; pixel centres are whole numbers
    points, template = landmarks @ [1, 1j], np.reshape(spec["template"], (5, 2)) @ [1, 1j]
    centred = points - points.mean()
    turn = (
        np.vdot(centred, template) / np.vdot(centred, centred).real
    )  # least squares: template = turn · points + shift
    shift = template.mean() - turn * points.mean()
    matrix = np.array([[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]])
    return cv2.warpAffine(photo, matrix, (spec["width_px"], spec["height_px"]))[..., ::-1]  # RGB


def embed(session, crop, spec):
    images = crop.transpose(2, 0, 1)[None]
    if spec["dtype"] != "uint8":
        images = (images.astype(np.float32) - np.float32(spec["mean"][0])) / np.float32(spec["std"][0])
    (embedding,) = session.run(None, {session.get_inputs()[0].name: images})[0]
    return embedding / np.linalg.norm(embedding)


if __name__ == "__main__":
    model, yunet, *photos = sys.argv[1:]
    session = onnxruntime.InferenceSession(model)
    spec = json.loads(session.get_modelmeta().custom_metadata_map["facemill.input"])
    detector = cv2.FaceDetectorYN.create(yunet, "", (320, 320), score_threshold=0.7)
    one, other = (embed(session, crop_face(photo, detector, spec), spec) for photo in photos)
    print(f"cosine {one @ other:.3f}")
