"""KL divergence between two softmax distributions over the same class centres, without ever holding all logits.

For queries s_i and t_i and a rank's class centres, the logits are z_ij = s_i·w_j + b_j and likewise for t. A block of
rows at a time goes into two online log-sum-exps, beside them into the mean gap of the logits,

    KL(p_t ‖ p_s) = Σ_j p_t(j)·(z_tj − z_sj) − L_t + L_s,   L = log Σ_j exp(z_j)

and, as the centres are frozen, into the two mean centres that are the gradient, ∂KL/∂s = Σ_j (p_s(j) − p_t(j))·w_j. So
no block is formed twice: four matrix products in all, where a backward pass of its own would make them five.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from pipeline import dist


def class_divergence(student: Tensor, teacher: Tensor, centres: Tensor, bias: Tensor | None, block_rows: int) -> Tensor:
    """KL(softmax of the teacher's logits ‖ softmax of the student's), by query. Collective, forward only.

    Args:
        student: [N, D], the same on all ranks; what is differentiated for, once.
        teacher: [N, D], the same on all ranks.
        centres: [rows, D], this rank's; rows may be 0.
        bias: [rows] or None.
        block_rows: class centres a block.

    Returns:
        [N], the same on all ranks. When every rank backpropagates the same loss, `student` gets this rank's part of
        the gradient times the number of ranks, as `walk_classes` gives it.
    """
    return cast(Tensor, _Divergence.apply(student, teacher, centres, bias, block_rows))


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, centres: Tensor, bias: Tensor | None, block_rows: int
    ) -> Tensor:
        is_trained = ctx.needs_input_grad[0]
        of_student, of_teacher = _Softmax(student, is_trained), _Softmax(teacher, is_trained)
        gap = torch.zeros_like(of_teacher.total)
        for start in range(0, len(centres), block_rows):
            rows = centres[start : start + block_rows]
            offset = None if bias is None else bias[start : start + block_rows]
            student_logits, teacher_logits = _product(student, rows, offset), _product(teacher, rows, offset)
            difference = teacher_logits - student_logits
            of_student.add(student_logits, rows)
            weights, factor = of_teacher.add(teacher_logits, rows)
            gap = gap * factor + (weights * difference).sum(1)
        greatest = dist.all_reduce_max(torch.stack([of_student.greatest, of_teacher.greatest]))
        student_factor, teacher_factor = of_student.shift(greatest[0]), of_teacher.shift(greatest[1])
        sums = dist.all_reduce_sum(torch.stack([of_student.total, of_teacher.total, gap * teacher_factor]))
        student_total, teacher_total, gap = sums
        if is_trained:
            of_student.mean.mul_((student_factor / student_total)[:, None])
            of_teacher.mean.mul_((teacher_factor / teacher_total)[:, None])
            ctx.save_for_backward(of_student.mean.sub_(of_teacher.mean).mul_(dist.world_size()))
        # the log-sum-exps' difference, not each of them: they are large where it is small
        return gap / teacher_total - ((greatest[1] - greatest[0]) + (teacher_total / student_total).log())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (direction,) = ctx.saved_tensors
        return direction * gradients[0][:, None], None, None, None, None


class _Softmax:
    """An online softmax of N queries: Σ exp(z − greatest), and the centres' sum weighted by the same."""

    def __init__(self, queries: Tensor, has_mean: bool) -> None:
        self.greatest = queries.new_full((len(queries),), -torch.inf)
        self.total = queries.new_zeros(len(queries))
        self.mean = torch.zeros_like(queries if has_mean else queries[:0])
        self._has_mean = has_mean

    def add(self, logits: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Take in a block of logits [N, n], which it overwrites, and its centres [n, D].

        Returns:
            The block's weights [N, n], and the factor [N] that makes up for the new maximum in earlier sums.
        """
        factor = self.shift(torch.maximum(self.greatest, logits.amax(1)))
        weights = logits.sub_(self.greatest[:, None]).exp_()
        self.total += weights.sum(1)
        if self._has_mean:
            self.mean.mul_(factor[:, None]).addmm_(weights, rows)
        return weights, factor

    def shift(self, greatest: Tensor) -> Tensor:
        """Count from another maximum [N], finite and not below the present one; gives the factor [N] on sums."""
        factor = (self.greatest - greatest).exp_()
        self.greatest = greatest
        self.total = self.total * factor
        return factor


def _product(queries: Tensor, rows: Tensor, bias: Tensor | None) -> Tensor:
    return queries @ rows.t() if bias is None else torch.addmm(bias, queries, rows.t())
