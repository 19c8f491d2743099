"""Configuration sections of the heads: what turns embeddings and labels into the training loss."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from pipeline.config.margins import ArcFaceMargin, MarginConfig
from pipeline.config.metric_heads import (
    ContrastiveConfig,
    MarginBasedConfig,
    MultiSimilarityConfig,
    NPairConfig,
    TripletConfig,
)
from pipeline.config.section import Section
from pipeline.config.teacher_heads import DistillationConfig, HarmonicConfig, TeacherConfig


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
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the target distribution that all classes of the softmax get alike (Szegedy et al. 2016,
    arXiv:1512.00567, section 7); classes that a step does not draw get none."""
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
        if self.label_smoothing and self.margin.kind == "unified":
            raise ValueError("label_smoothing smooths a softmax, which margin 'unified' does not have")
        return self


class CentreConfig(Section):
    """λ/2·mean ‖x − c_y‖² to class centres that follow their samples (Wen et al. 2016, "A Discriminative Feature
    Learning Approach for Deep Face Recognition"). Alone it has a trivial optimum; sum it with another head."""

    kind: Literal["centre"] = "centre"
    strength: float = Field(0.003, gt=0)
    """λ; a weight in a sum multiplies it."""
    centre_rate: float = Field(0.5, gt=0, le=1)
    """Alpha of the paper: n samples in a batch move their centre alpha·n/(n + 1) of the way to their mean."""
    normalise: bool = False
    """Bring embeddings to unit length first, as beside heads that see only their direction; the paper does not."""


SingleHead = (
    MarginSoftmaxConfig
    | ContrastiveConfig
    | TripletConfig
    | MarginBasedConfig
    | MultiSimilarityConfig
    | NPairConfig
    | CentreConfig
    | DistillationConfig
    | HarmonicConfig
)
"""Every head but `sum`; all of them can be a part of one."""

_Weight = Annotated[float, Field(ge=0)]
_Point = tuple[Annotated[float, Field(ge=0)], _Weight]
Weight = Annotated[
    Annotated[_Weight, Tag("number")] | Annotated[list[_Point], Field(min_length=1), Tag("schedule")],
    Discriminator(lambda value: "schedule" if isinstance(value, Sequence) and not isinstance(value, str) else "number"),
]


class HeadPart(Section):
    """One summand."""

    weight: Weight = 1.0
    """Factor on this part's loss: a number, or a list of [epoch, weight] points joined by straight lines and constant
    outside; two points at one epoch are a jump. A part is not computed, and rests, while its weight is 0."""
    head: Annotated[SingleHead, Field(discriminator="kind")]
    """The loss."""

    @model_validator(mode="after")
    def _epochs_ascend(self) -> HeadPart:
        if isinstance(self.weight, list):
            epochs = [epoch for epoch, _ in self.weight]
            if epochs != sorted(epochs) or any(epochs.count(epoch) > 2 for epoch in epochs):
                raise ValueError(f"the epochs of a weight's points must ascend, at most two at one, found {epochs}")
        return self


class SumConfig(Section):
    """A weighted sum of heads, such as softmax and centre loss, or softmax that gives way to triplets."""

    kind: Literal["sum"] = "sum"
    parts: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], HeadPart] = Field(min_length=1)
    """The summands, under names of your choice (a-z, 0-9, _) that stand before their metrics."""

    @model_validator(mode="after")
    def _check_parts(self) -> SumConfig:
        for epoch in _instants(part.weight for part in self.parts.values()):
            if not any(weight_at(part.weight, epoch) > 0 for part in self.parts.values()):
                raise ValueError(f"no part has a weight at epoch {epoch:g}")
        heads = [part.head for part in self.parts.values()]
        checkpoints = {str(h.teacher.checkpoint) for h in heads if isinstance(h, DistillationConfig | HarmonicConfig)}
        if len(checkpoints) > 1:
            raise ValueError(f"parts name several teachers ({', '.join(sorted(checkpoints))}), one is possible")
        return self


HeadConfig = Annotated[SingleHead | SumConfig, Field(discriminator="kind")]


def weight_at(weight: float | list[tuple[float, float]], epoch: float) -> float:
    """A part's weight after `epoch` passes over the data; at a jump, the weight after it."""
    if not isinstance(weight, list):
        return weight
    done = [point for point in weight if point[0] <= epoch]
    ahead = [point for point in weight if point[0] > epoch]
    if not done or not ahead:
        return done[-1][1] if done else ahead[0][1]
    (start, before), (end, after) = done[-1], ahead[0]
    return before + (after - before) * (epoch - start) / (end - start)


def single_heads(config: HeadConfig) -> dict[str, SingleHead]:
    """The heads of a configuration by the name of their part; a head that is no sum stands under the empty name."""
    if isinstance(config, SumConfig):
        return {name: part.head for name, part in config.parts.items()}
    return {"": config}


def with_teacher(config: HeadConfig, checkpoint: Path) -> HeadConfig:
    """The same configuration, every teacher in it being this checkpoint."""
    if isinstance(config, SumConfig):
        parts = {
            name: part.model_copy(update={"head": with_teacher(part.head, checkpoint)})
            for name, part in config.parts.items()
        }
        return config.model_copy(update={"parts": parts})
    if isinstance(config, DistillationConfig | HarmonicConfig):
        return config.model_copy(update={"teacher": TeacherConfig(checkpoint=checkpoint)})
    return config


def _instants(schedules: Iterable[float | list[tuple[float, float]]]) -> Iterator[float]:
    """Epochs between which all weights are straight lines, and one in each gap: where a sum of weights could be 0."""
    epochs = sorted({0.0, *(epoch for points in schedules if isinstance(points, list) for epoch, _ in points)})
    yield from epochs
    yield from ((one + other) / 2 for one, other in pairwise(epochs))
    yield epochs[-1] + 1
