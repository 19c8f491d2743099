"""Networks that turn crops into embeddings."""

from pipeline.model.backbones.build import FaceModel, build_backbone, build_without_memory

__all__ = ["FaceModel", "build_backbone", "build_without_memory"]
