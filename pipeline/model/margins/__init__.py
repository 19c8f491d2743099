"""All margins; importing the package registers them."""

from pipeline.model.margins import adaptive, cosine, multiplied_angle, unified  # noqa: F401
