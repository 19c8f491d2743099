"""Configuration sections of the heads: what turns embeddings and labels into the training loss."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

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
    sample_rate: float = Field(1.0, gt=0, le=1)
    """Share of the negatives that a step draws; classes of the batch always take part, and only what takes part moves
    (Partial FC, arXiv:2010.05222)."""
    num_subcentres: int = Field(1, ge=1, le=16)
    """K centres a class, of which the most similar one counts; more than 1 bear label noise (sub-centre ArcFace)."""
    negative_filter: float | None = Field(None, gt=0, lt=1)
    """Leave negatives with a greater cosine out: likely the same person under two labels. 0.4 is Partial FC's value."""
    frozen_classes: int = Field(0, ge=0)
    """The centres of the first so many labels do not move; for adding people to a trained head."""
    products: Literal["fp32", "bf16"] = "fp32"
    """Type of the matrix products' factors; sums, softmax and loss are float32 in any case."""
    block_bytes: int | None = Field(None, ge=1024)
    """Memory of one block of logits; None chooses."""
    keep_bytes: int | None = Field(None, ge=0)
    """Memory for logits that are kept for the backward pass instead of formed again; None chooses."""

    @model_validator(mode="after")
    def _fits_the_margin(self) -> MarginSoftmaxConfig:
        is_cosine = self.margin.kind not in ("softmax", "l_softmax")
        for key, is_used in (
            ("num_subcentres", self.num_subcentres > 1),
            ("negative_filter", self.negative_filter is not None),
        ):
            if is_used and not is_cosine:
                raise ValueError(f"{key} compares cosines, which margin {self.margin.kind!r} does not have")
        return self


HeadConfig = Annotated[
    MarginSoftmaxConfig | ContrastiveConfig | TripletConfig | MarginBasedConfig | MultiSimilarityConfig | NPairConfig,
    Field(discriminator="kind"),
]
