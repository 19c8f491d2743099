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
    learns_scale: bool = False
    """Train s, from `scale` on."""


class AnnealedMargin(Section):
    """What margins share that begin as plain softmax, because they would not converge at once."""

    annealing_start: float = Field(1000.0, ge=0)
    """λ at the first step: the target's logit is (λ cos θ + ψ)/(1 + λ)."""
    annealing_rate: float = Field(0.12, ge=0)
    """λ = max(annealing_floor, annealing_start / (1 + annealing_rate · step))."""
    annealing_floor: float = Field(5.0, ge=0)
    """Least λ; 0 for the full margin in the end."""


class LSoftmaxMargin(AnnealedMargin):
    """Large-margin softmax: ‖W‖‖x‖ψ(θ), nothing normalised (Liu et al. 2016, arXiv:1612.02295)."""

    kind: Literal["l_softmax"] = "l_softmax"
    margin: Literal[1, 2, 3, 4] = 2
    """m, the factor on the target's angle."""


class SphereFaceMargin(AnnealedMargin):
    """A-softmax: class centres normalised, ‖x‖ψ(θ), annealed (Liu et al. 2017, arXiv:1704.08063)."""

    kind: Literal["sphereface"] = "sphereface"
    margin: Literal[1, 2, 3, 4] = 4
    """m, the factor on the target's angle."""
    scale: float | None = Field(None, gt=0)
    """s; None keeps the embedding's length, as the paper does; 30 is usual otherwise."""


class CosFaceMargin(Section):
    """φ = cos θ − m (Wang et al. 2018, arXiv:1801.09414; AM-softmax, arXiv:1801.05599, with scale 30, margin 0.35)."""

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


class CombinedMargin(Section):
    """φ = cos(m1·θ + m2) − m3 (Deng et al. 2019, arXiv:1801.07698, equation 4)."""

    kind: Literal["combined"] = "combined"
    scale: float = Field(64.0, gt=0)
    """s, the factor on cosines."""
    m1: float = Field(1.0, ge=1)
    """Factor on the target's angle."""
    m2: float = Field(0.5, ge=0)
    """Radians, added to the angle."""
    m3: float = Field(0.0, ge=0)
    """Subtracted from the cosine."""


class AirFaceMargin(Section):
    """Linear in the angle: s(π − 2(θ + m))/π, without m for the other classes (Li et al. 2019, arXiv:1907.12256)."""

    kind: Literal["airface"] = "airface"
    scale: float = Field(64.0, gt=0)
    """s, the logit at angle 0."""
    margin: float = Field(0.45, ge=0)
    """m, radians."""


class AdaCosMargin(Section):
    """No margin, and a scale that follows from the classes or moves by itself (Zhang et al. 2019, arXiv:1905.00292)."""

    kind: Literal["adacos"] = "adacos"
    dynamic: bool = True
    """Adapt the scale at every step, at the price of one more pass over the classes; otherwise √2·ln(C − 1)."""


class CurricularFaceMargin(Section):
    """ArcFace whose hard negatives weigh more and more (Huang et al. 2020, arXiv:2004.00288)."""

    kind: Literal["curricularface"] = "curricularface"
    scale: float = Field(64.0, gt=0)
    """s, the factor on cosines."""
    margin: float = Field(0.5, ge=0)
    """m, radians."""
    momentum: float = Field(0.01, gt=0, le=1)
    """Weight of a batch in the moving average t of the targets' cosines."""


class MagFaceMargin(Section):
    """ArcFace whose margin grows with the embedding's length a (Meng et al. 2021, arXiv:2103.06627)."""

    kind: Literal["magface"] = "magface"
    scale: float = Field(64.0, gt=0)
    """s, the factor on cosines."""
    least_norm: float = Field(10.0, gt=0)
    """Lengths below count as this."""
    greatest_norm: float = Field(110.0, gt=0)
    """Lengths above count as this."""
    least_margin: float = Field(0.45, ge=0)
    """Radians, at the least length."""
    greatest_margin: float = Field(0.8, ge=0)
    """Radians, at the greatest length."""
    regularisation: float = Field(35.0, ge=0)
    """λ_g, the weight of 1/a + a/greatest_norm², which draws lengths up."""


class AdaFaceMargin(Section):
    """Margin by image quality, which the embedding's length stands for (Kim et al. 2022, arXiv:2204.00964)."""

    kind: Literal["adaface"] = "adaface"
    scale: float = Field(64.0, gt=0)
    """s, the factor on cosines."""
    margin: float = Field(0.4, ge=0)
    """m of both the angular and the additive part."""
    concentration: float = Field(0.333, gt=0)
    """h: a length this many standard deviations from the mean, times three, is as far as the margin follows."""
    momentum: float = Field(0.01, gt=0, le=1)
    """Weight of a batch in the moving mean and standard deviation of lengths."""


class ElasticFaceMargin(Section):
    """A margin drawn anew for each sample and step (Boutros et al. 2022, arXiv:2109.09416)."""

    kind: Literal["elasticface"] = "elasticface"
    form: Literal["arc", "cos"] = "arc"
    """Draw ArcFace's margin or CosFace's."""
    scale: float = Field(64.0, gt=0)
    """s, the factor on cosines."""
    margin: float | None = Field(None, ge=0)
    """Mean of the draws; None: 0.5 (arc), 0.35 (cos)."""
    deviation: float | None = Field(None, ge=0)
    """Standard deviation of the draws; None: 0.05, with `plus` 0.0175 (arc) or 0.025 (cos)."""
    plus: bool = False
    """Give the greatest margin of a batch to the sample with the least cosine, and so on."""


class UnifiedMargin(Section):
    """Unified cross-entropy: every pair against one threshold b (Zhou et al. 2023, UniFace)."""

    kind: Literal["unified"] = "unified"
    scale: float = Field(64.0, gt=0)
    """s, the factor on cosines."""
    margin: float = Field(0.4, ge=0)
    """m, subtracted from the target's cosine."""
    negative_weight: float = Field(1.0, gt=0)
    """l, the weight of the sum over the other classes."""
    negative_ratio: float = Field(1.0, gt=0)
    """r: b starts at ln(10·C·r); 1 is the paper's choice unless negatives are sampled."""


MarginConfig = Annotated[
    SoftmaxMargin
    | NormFaceMargin
    | LSoftmaxMargin
    | SphereFaceMargin
    | CosFaceMargin
    | ArcFaceMargin
    | CombinedMargin
    | AirFaceMargin
    | AdaCosMargin
    | CurricularFaceMargin
    | MagFaceMargin
    | AdaFaceMargin
    | ElasticFaceMargin
    | UnifiedMargin,
    Field(discriminator="kind"),
]
