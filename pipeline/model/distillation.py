"""Learning from a frozen teacher: its embeddings, or what its class centres say of the student's."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline import dist
from pipeline.config.teacher_heads import CosineTarget, DistillationConfig, LogitTarget, Target
from pipeline.model.block_size import block_rows
from pipeline.model.class_divergence import class_divergence
from pipeline.model.global_batch import Slots, gather_slots, without_masked
from pipeline.model.head import Head, HeadOutput, register_head
from pipeline.model.teacher import Teacher, TeacherClasses


class DistillationHead(Head):
    """The mean over the valid slots of one of, x being the student's embedding and t the teacher's of the same crop:

        cosine   1 − cos(x, t)                                        (Duong et al. 2019, arXiv:1905.10620)
        l2       ½‖x − t‖²                                   (Romero et al. 2015, arXiv:1412.6550, equation 3)
        logits   T²·KL(softmax(z(t)/T) ‖ softmax(z(x)/T))             (Hinton et al. 2015, arXiv:1503.02531)

    z(x) are the logits, without a margin, that the teacher's class centres give: both are classified by them (as in
    Yang et al. 2021, "Knowledge distillation via softmax regression representation learning"), so the student's
    embeddings land where the teacher's are. The centres are frozen and in no checkpoint of this run.

    Where dimensions differ, x is `projection` times the student's embedding, a learnt, replicated matrix [D', D].

    Computes in float32 whatever the embeddings' type and whatever autocast says; after `.double()`, in float64.

    Args:
        num_classes: C.
        embedding_dim: D, the student's.
        target: which loss.
        seed: of the projection.
    """

    needs_teacher = True

    def __init__(self, num_classes: int, embedding_dim: int, target: Target, seed: int) -> None:
        super().__init__()
        self.num_classes, self.embedding_dim = num_classes, embedding_dim
        self._target, self._seed = target, seed
        self.projection: nn.Parameter | None = None
        self._classes: TeacherClasses | None = None

    def attach_teacher(self, teacher: Teacher) -> None:
        if teacher.embedding_dim != self.embedding_dim:
            # plain draws, which keep lengths on average, and no orthogonal matrix: a decomposition may differ in its
            # last digits between the processors of two ranks, whose replicas would then never be equal
            generator = torch.Generator().manual_seed(self._seed)
            initial = torch.randn(teacher.embedding_dim, self.embedding_dim, generator=generator)
            self.projection = nn.Parameter(initial / teacher.embedding_dim**0.5)
        self._classes = teacher.classes

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        sample_ids: Tensor,
        valid: Tensor,
        step: int,
        *,
        num_valid: Tensor | None = None,
        teacher_embeddings: Tensor | None = None,
    ) -> HeadOutput:
        assert teacher_embeddings is not None
        dtype = torch.float64 if embeddings.dtype == torch.float64 else torch.float32
        with torch.autocast(embeddings.device.type, enabled=False):
            slots = gather_slots(labels, sample_ids, valid, self.num_classes)
            student = without_masked(embeddings, valid, dtype)
            teacher = without_masked(teacher_embeddings.detach(), valid, dtype)
            if self.projection is not None:
                student = student @ self.projection.t()
            cosine = functional.cosine_similarity(student, teacher)
            if isinstance(self._target, LogitTarget):
                losses = self._divergence(student, teacher, self._target)
                total = torch.where(slots.valid, losses, 0).sum()
            else:
                is_cosine = isinstance(self._target, CosineTarget)
                losses = 1 - cosine if is_cosine else (student - teacher).square().sum(1) / 2
                total = dist.sum_over_ranks(torch.where(valid, losses, 0).sum())
            loss = total / (slots.num_valid if num_valid is None else num_valid).clamp(min=1)
            return HeadOutput(loss, {"teacher_cosine": _mean(cosine.detach(), valid, slots)})

    def _divergence(self, student: Tensor, teacher: Tensor, target: LogitTarget) -> Tensor:
        """T²·KL of each slot of all ranks, [N]."""
        classes = self._classes
        assert classes is not None
        temperature = target.temperature
        student = dist.all_gather_rows(classes.queries(student) / temperature)
        with torch.no_grad():
            teacher = dist.all_gather_rows(classes.queries(teacher) / temperature)
            bias = None if classes.bias is None else classes.bias / temperature
        rows = block_rows(max(student.shape), student, target.block_bytes)
        return temperature**2 * class_divergence(student, teacher, classes.centres, bias, rows)


def _mean(figures: Tensor, valid: Tensor, slots: Slots) -> Tensor:
    """Mean of a figure [B] over the valid slots of all ranks. Collective."""
    return dist.all_reduce_sum(torch.where(valid, figures, 0).sum()) / slots.num_valid.clamp(min=1)


@register_head("distillation")
def build_distillation(config: DistillationConfig, num_classes: int, embedding_dim: int, seed: int) -> DistillationHead:
    """Build the head from its configuration section; it wants its teacher attached."""
    return DistillationHead(num_classes, embedding_dim, config.target, seed)
