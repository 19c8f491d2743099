"""Configuration sections of the margins; `pipeline/model/margins` has what they name."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.section import Section


class SoftmaxMargin(Section):
    """Plain softmax: logits W·x + b, nothing normalised."""

    kind: Literal["softmax"] = "softmax"


class NormFaceMargin(Section):
    """Normalised softmax without a margin (Wang et al. 2017, arXiv:1704.06369)."""

    kind: Literal["normface"] = "normface"
    scale: float = Field(64.0, gt=0)
    """s, the factor on cosines."""


class CosFaceMargin(Section):
    """φ = cos θ − m (Wang et al. 2018, arXiv:1801.09414)."""

    kind: Literal["cosface"] = "cosface"
    scale: float = Field(64.0, gt=0)
    """s, the factor on cosines."""
    margin: float = Field(0.35, ge=0)
    """m, subtracted from the target's cosine."""


class ArcFaceMargin(Section):
    """φ = cos(θ + m) (Deng et al. 2019, arXiv:1801.07698, equation 3)."""

    kind: Literal["arcface"] = "arcface"
    scale: float = Field(64.0, gt=0)
    """s, the factor on cosines."""
    margin: float = Field(0.5, ge=0)
    """m, radians, added to the target's angle."""
    easy_margin: bool = False
    """Apply the margin only where cos θ > 0."""
    detach_margin_gradient: bool = False
    """Straight-through gradient of the margin, as the reference implementation computes it; exact otherwise."""


MarginConfig = Annotated[SoftmaxMargin | NormFaceMargin | CosFaceMargin | ArcFaceMargin, Field(discriminator="kind")]
