"""Configuration sections of the heads: what turns embeddings and labels into the training loss."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.margins import ArcFaceMargin, MarginConfig
from pipeline.config.metric_heads import (
    ContrastiveConfig,
    MarginBasedConfig,
    MultiSimilarityConfig,
    NPairConfig,
    TripletConfig,
)
from pipeline.config.section import Section


class MarginSoftmaxConfig(Section):
    """Softmax with a margin over class centres that are split over all ranks; logits are never materialised."""

    kind: Literal["margin_softmax"] = "margin_softmax"
    margin: MarginConfig = ArcFaceMargin()
    """The transform of the target's logit."""
    block_bytes: int | None = Field(None, ge=1024)
    """Memory of one block of logits; None chooses."""


HeadConfig = Annotated[
    MarginSoftmaxConfig | ContrastiveConfig | TripletConfig | MarginBasedConfig | MultiSimilarityConfig | NPairConfig,
    Field(discriminator="kind"),
]
