"""What an exported file says of itself: the strings of its metadata, the same in every format."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pipeline.checkpoint import LoadedBackbone
from pipeline.input_spec import METADATA_KEY, METADATA_PREFIX, InputSpec

NO_LICENCE = "not stated: who exported the model gave no licence"


@dataclass(frozen=True)
class Description:
    """Of a model, whatever file it is written to."""

    input: InputSpec
    embedding_dim: int
    backbone: dict[str, Any]
    """Its configuration."""
    weights: str
    """`ema` or `raw`."""
    step: int
    samples: int
    """Samples it was trained on, repeats counted."""
    trained_on: list[tuple[str, str]]
    """Split and digest of each data set."""
    licence: str

    def metadata(self, **more: str) -> dict[str, str]:
        """Keys and values for a file's metadata; `more` are keys of that file alone, without their prefix."""
        described = {
            "embedding_dim": str(self.embedding_dim),
            "backbone": json.dumps(self.backbone),
            "weights": self.weights,
            "step": str(self.step),
            "samples": str(self.samples),
            "trained_on": json.dumps(self.trained_on),
            "licence": self.licence,
            **more,
        }
        return {METADATA_KEY: self.input.model_dump_json(), **{METADATA_PREFIX + k: v for k, v in described.items()}}


def describe(loaded: LoadedBackbone, licence: str, is_normalised_inside: bool) -> Description:
    """Describe a checkpoint's backbone.

    Args:
        loaded: the backbone.
        licence: of its weights; empty where none was given.
        is_normalised_inside: whether the file takes plain pixels, uint8, or what is made of them, float32.
    """
    size_px = loaded.crop_px
    template = loaded.dataset["crop"]["template"]
    return Description(
        input=InputSpec(
            height_px=size_px,
            width_px=size_px,
            dtype="uint8" if is_normalised_inside else "float32",
            template=template,
        ),
        embedding_dim=loaded.embedding_dim,
        backbone=loaded.config["backbone"],
        weights=loaded.weights,
        step=loaded.step,
        samples=loaded.num_samples,
        trained_on=loaded.trained_on,
        licence=licence or NO_LICENCE,
    )
