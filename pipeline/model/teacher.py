"""What a head hears of its teacher, a trained model that is frozen."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.model.class_blocks import MIN_NORM
from pipeline.model.margins.base import Margin


class TeacherClasses:
    """A trained margin softmax without its margin: what class each embedding belongs to, in the teacher's eyes.

    Args:
        margin: of the teacher's head, with its buffers as trained.
        centres: [rows, D'], this rank's part of the teacher's class centres.
        bias: [rows] or None.
    """

    def __init__(self, margin: Margin, centres: Tensor, bias: Tensor | None) -> None:
        self._margin = margin
        self.centres = functional.normalize(centres.detach()) if margin.is_cosine else centres.detach()
        """[rows, D'], of unit length where the teacher's logits are cosines."""
        self.bias = None if bias is None else bias.detach()
        """[rows] or None."""

    def queries(self, embeddings: Tensor) -> Tensor:
        """Embeddings [N, D'] to what, times `centres` plus `bias`, gives logits; differentiable."""
        if not self._margin.is_cosine:
            return embeddings
        norm = torch.linalg.vector_norm(embeddings, dim=1)
        return embeddings * (self._margin.logit_scale(norm) / norm.clamp(min=MIN_NORM))[:, None]


@dataclass(frozen=True)
class Teacher:
    """A frozen model, as far as heads are concerned; its embeddings come with each call of `forward`."""

    embedding_dim: int
    """D'."""
    classes: TeacherClasses | None
    """None where no head asks for them."""
