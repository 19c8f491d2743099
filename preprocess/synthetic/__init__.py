"""Rendered photos of synthetic people with true boxes and landmarks: the demo's input and the tests' ground truth."""

from preprocess.synthetic.render import PhotoTruth, RenderedPhoto, photo_truth, render_photo
from preprocess.synthetic.write import WriteSummary, write_photos

__all__ = ["PhotoTruth", "RenderedPhoto", "WriteSummary", "photo_truth", "render_photo", "write_photos"]
