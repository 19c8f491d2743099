"""Distillation: the blockwise divergence, what the teacher's classes say, projections, corners, precision, memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.config.errors import UserError
from pipeline.config.heads import DistillationConfig
from pipeline.config.margins import ArcFaceMargin, SoftmaxMargin
from pipeline.config.teacher_heads import CosineTarget, L2Target, LogitTarget, Target
from pipeline.model.class_divergence import class_divergence
from pipeline.model.head import Head, HeadOutput, build_head
from pipeline.model.margins.base import Margin, build_margin
from pipeline.model.teacher import Teacher, TeacherClasses
from tests.losses.composed_reference import TEACHER
from tests.losses.test_class_blocks import LargestTensor

NUM_CLASSES, DIM, BATCH = 7, 4, 6
TARGETS: list[Target] = [CosineTarget(), L2Target(), LogitTarget(temperature=2)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def build(target: Target, dim: int = DIM, teacher_dim: int = DIM, num_classes: int = NUM_CLASSES) -> Head:
    head = build_head(DistillationConfig(teacher=TEACHER, target=target), num_classes, dim, seed=0)
    classes = TeacherClasses(
        build_margin(ArcFaceMargin(scale=8), NUM_CLASSES), normal(num_classes, teacher_dim, seed=5), None
    )
    head.attach_teacher(Teacher(teacher_dim, classes))
    return head.double()


def call(head: Head, student: Tensor, teacher: Tensor, valid: list[bool] | None = None) -> HeadOutput:
    num = len(student)
    labels, ids = torch.arange(num) % NUM_CLASSES, torch.arange(num)
    mask = torch.tensor(valid or [True] * num)
    return head(student, labels.where(mask, -5), ids, mask, 0, teacher_embeddings=teacher)


@pytest.mark.parametrize("block_rows", [1, 3, NUM_CLASSES, 100])
@pytest.mark.parametrize("has_bias", [False, True])
def test_divergence_and_its_gradient(block_rows: int, has_bias: bool) -> None:
    student, teacher, centres = normal(BATCH, DIM), normal(BATCH, DIM, seed=1), normal(NUM_CLASSES, DIM, seed=2)
    bias = normal(NUM_CLASSES, seed=3) if has_bias else None
    logits = [e @ centres.t() + (0 if bias is None else bias) for e in (teacher, student)]
    expected = functional.kl_div(logits[1].log_softmax(1), logits[0].softmax(1), reduction="none").sum(1)
    found = class_divergence(student, teacher, centres, bias, block_rows)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: class_divergence(x, teacher, centres, bias, block_rows), [student])


def test_divergence_of_huge_logits_is_finite_and_of_equal_ones_zero() -> None:
    centres = functional.normalize(normal(NUM_CLASSES, DIM)).float()
    student = (3e4 * normal(BATCH, DIM, seed=1)).float().requires_grad_()
    teacher = (3e4 * normal(BATCH, DIM, seed=2)).float()
    different = class_divergence(student, teacher, centres, None, 2)
    different.sum().backward()
    assert student.grad is not None
    assert different.isfinite().all()
    assert different.min() > 100
    # both are certain: the student is pulled from its class's centre to the teacher's
    answers = [(e.detach() @ centres.t()).argmax(1) for e in (student, teacher)]
    torch.testing.assert_close(student.grad, centres[answers[0]] - centres[answers[1]])
    student.grad = None
    same = class_divergence(student, student.detach(), centres, None, 2)
    same.sum().backward()
    assert torch.equal(same, torch.zeros(BATCH))
    assert torch.equal(student.grad, torch.zeros(BATCH, DIM))


def test_a_small_divergence_keeps_its_digits_in_float32() -> None:
    centres, student = functional.normalize(normal(50, 16)), normal(BATCH, 16, seed=1)
    student = 30 * functional.normalize(student)
    teacher = student + 0.03 * normal(BATCH, 16, seed=2)
    exact = class_divergence(student, teacher, centres, None, 8)
    single = class_divergence(student.float(), teacher.float(), centres.float(), None, 8)
    assert exact.max() < 2e-3
    torch.testing.assert_close(single.double(), exact, rtol=0, atol=3e-6)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.kind)
@pytest.mark.parametrize("teacher_dim", [DIM, 3])
def test_gradcheck(target: Target, teacher_dim: int) -> None:
    head = build(target, teacher_dim=teacher_dim)
    student, teacher = normal(BATCH, DIM, seed=7).requires_grad_(), normal(BATCH, teacher_dim, seed=8)
    valid = [True, True, False, True, True, True]
    assert torch.autograd.gradcheck(lambda x: call(head, x, teacher, valid).loss, [student])


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.kind)
def test_a_student_like_its_teacher_has_nothing_to_learn(target: Target) -> None:
    student = normal(BATCH, DIM).requires_grad_()
    output = call(build(target), student, student.detach().clone())
    output.loss.backward()
    assert output.loss.item() == pytest.approx(0, abs=1e-12)
    assert output.metrics["teacher_cosine"].item() == pytest.approx(1)
    assert student.grad is not None
    assert student.grad.norm() < 1e-12


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.kind)
def test_descent_brings_the_student_to_the_teacher(target: Target) -> None:
    head = build(target)
    student, teacher = normal(BATCH, DIM), normal(BATCH, DIM, seed=1)
    first = call(head, student, teacher)
    for _ in range(300):
        leaf = student.clone().requires_grad_()
        call(head, leaf, teacher).loss.backward()
        assert leaf.grad is not None
        student = student - leaf.grad
    last = call(head, student, teacher)
    assert last.loss < 0.01 * first.loss
    assert last.metrics["teacher_cosine"] > 0.99


def test_the_projection_is_learnt_replicated_and_made_only_where_needed() -> None:
    assert list(build(CosineTarget()).parameters()) == []
    head = build(CosineTarget(), dim=200, teacher_dim=100)
    projection = head.get_parameter("projection")
    assert projection.shape == (100, 200)
    assert head.sharded_tensors() == {}
    assert torch.equal(projection, build(CosineTarget(), dim=200, teacher_dim=100).get_parameter("projection"))
    unit = functional.normalize(normal(50, 200))
    assert (unit @ projection.t()).norm(dim=1).mean().item() == pytest.approx(1, abs=0.05)
    call(head, normal(BATCH, 200), normal(BATCH, 100)).loss.backward()
    assert projection.grad is not None
    assert projection.grad.norm() > 0


def test_teacher_and_its_classes_are_frozen_and_in_no_checkpoint() -> None:
    head = build(LogitTarget())
    assert head.state_dict() == {}
    student, teacher = normal(BATCH, DIM).requires_grad_(), normal(BATCH, DIM, seed=1).requires_grad_()
    call(head, student, teacher).loss.backward()
    assert teacher.grad is None
    assert student.grad is not None


class LengthIsScale(Margin):
    """Logits ‖x‖·cos θ."""

    def logit_scale(self, norm: Tensor) -> Tensor:
        return norm


def test_logits_are_the_teachers_own() -> None:
    centres, bias, x = normal(NUM_CLASSES, DIM), normal(NUM_CLASSES, seed=1), normal(BATCH, DIM, seed=2)
    unit = functional.normalize(centres)
    plain = TeacherClasses(build_margin(SoftmaxMargin(), NUM_CLASSES), centres, bias)
    assert torch.equal(plain.queries(x) @ plain.centres.t() + bias, x @ centres.t() + bias)
    cosine = TeacherClasses(build_margin(ArcFaceMargin(scale=30), NUM_CLASSES), centres, None)
    torch.testing.assert_close(cosine.queries(x) @ cosine.centres.t(), 30 * functional.normalize(x) @ unit.t())
    lengths = TeacherClasses(LengthIsScale(), centres, None)
    torch.testing.assert_close(lengths.queries(x) @ lengths.centres.t(), x @ unit.t())


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.kind)
def test_corners(target: Target) -> None:
    head = build(target, num_classes=1)
    alone = call(head, normal(1, DIM).requires_grad_(), normal(1, DIM, seed=1))
    assert alone.loss.isfinite()
    if isinstance(target, LogitTarget):
        assert alone.loss.item() == 0, "one class, one certain answer"
    nan = torch.full((2, DIM), torch.nan, dtype=torch.float64, requires_grad=True)
    output = call(head, nan, nan.detach(), [False, False])
    output.loss.backward()
    assert output.loss.item() == 0
    assert nan.grad is not None
    assert not nan.grad.any()
    ids, valid = torch.arange(40, 42), torch.ones(2, dtype=torch.bool)
    with pytest.raises(UserError, match="sample 41 has label 1; expected 0 to 0"):
        head(nan, torch.tensor([0, 1]), ids, valid, 0, teacher_embeddings=nan)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.kind)
def test_float32_whatever_autocast_says(target: Target) -> None:
    student, teacher = normal(BATCH, DIM).bfloat16(), normal(BATCH, DIM, seed=1).bfloat16()
    losses = []
    for enabled, cast in ((True, Tensor.bfloat16), (False, Tensor.float)):
        head = build_head(DistillationConfig(teacher=TEACHER, target=target), NUM_CLASSES, DIM, seed=0)
        classes = TeacherClasses(
            build_margin(ArcFaceMargin(scale=8), NUM_CLASSES), normal(NUM_CLASSES, 3).float(), None
        )
        head.attach_teacher(Teacher(3, classes))
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            losses.append(call(head, cast(student), cast(teacher[:, :3])).loss)
    assert losses[0].dtype == torch.float32
    assert torch.equal(losses[0], losses[1])


def test_logits_are_never_laid_out() -> None:
    batch, num_classes, dim = 512, 3000, 16
    config = DistillationConfig(teacher=TEACHER, target=LogitTarget(block_bytes=64 * 1024))
    head = build_head(config, num_classes, dim, seed=0)
    classes = TeacherClasses(build_margin(ArcFaceMargin(), num_classes), torch.randn(num_classes, dim), None)
    head.attach_teacher(Teacher(dim, classes))
    student, labels = torch.randn(batch, dim, requires_grad=True), torch.arange(batch)
    valid = torch.ones(batch, dtype=torch.bool)
    with LargestTensor() as largest:
        head(student, labels, labels, valid, 0, teacher_embeddings=torch.randn(batch, dim)).loss.backward()
    # a block of 32 classes; the logits would be 512 · 3000
    assert largest.num_elements == batch * 32
