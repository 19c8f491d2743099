"""Configuration sections of the heads that learn from a frozen teacher, a model trained before."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.section import Section


class TeacherConfig(Section):
    """A trained model that is shown the same crops, frozen."""

    checkpoint: Path
    """Directory of the run that trained it, or one `step-N` of its checkpoints. A run's directory means its newest
    checkpoint at the start; the resolved configuration names that one."""


class CosineTarget(Section):
    """1 − cos of the angle between the student's and the teacher's embedding (Duong et al. 2019, arXiv:1905.10620)."""

    kind: Literal["cosine"] = "cosine"


class L2Target(Section):
    """½‖x − t‖², lengths included (hints of Romero et al. 2015, arXiv:1412.6550, equation 3)."""

    kind: Literal["l2"] = "l2"


class LogitTarget(Section):
    """T²·KL(teacher ‖ student) of the class distributions softmax(logits / T) (Hinton et al. 2015, arXiv:1503.02531).

    The logits are what the teacher's own frozen class centres say of either's embedding, without a margin. The
    teacher must have been trained on the same identities.
    """

    kind: Literal["logits"] = "logits"
    temperature: float = Field(4.0, gt=0)
    """T, divides the logits of both; larger ones weigh the unlikely classes more."""
    block_bytes: int | None = Field(None, ge=1024)
    """Memory of one block of logits; None chooses."""


Target = CosineTarget | L2Target | LogitTarget


class DistillationConfig(Section):
    """Embeddings or class probabilities like a teacher's; where the embeddings' dimensions differ, the student's are
    taken to the teacher's by a learnt linear map that is of no use after the training."""

    kind: Literal["distillation"] = "distillation"
    teacher: TeacherConfig
    """Whom to learn from."""
    target: Annotated[Target, Field(discriminator="kind")] = CosineTarget()
    """What to learn."""


class HarmonicConfig(Section):
    """Triplets that mix new embeddings with a frozen model's, so that new photos can be searched among embeddings
    made by that older model (Schroff et al. 2015, arXiv:1503.03832, appendix: harmonic embedding)."""

    kind: Literal["harmonic"] = "harmonic"
    teacher: TeacherConfig
    """The older model, v1; its embeddings have as many dimensions as the new ones."""
    margin: float = Field(0.2, gt=0)
    """By how much the negative's squared distance should exceed the positive's."""
    block_bytes: int | None = Field(None, ge=1024)
    """Memory of one block of distances; None chooses."""
