"""All margins; importing the package registers them."""

from pipeline.model.margins import cosine  # noqa: F401
