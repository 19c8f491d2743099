"""Centre loss, distillation, harmonic triplets and a sum of them on a GPU, against the CPU's float64."""

from __future__ import annotations

import pytest
import torch

from pipeline.config.heads import CentreConfig, HarmonicConfig, HeadPart, SumConfig
from pipeline.config.margins import ArcFaceMargin
from pipeline.config.teacher_heads import CosineTarget, DistillationConfig, LogitTarget, TeacherConfig
from pipeline.model.head import build_head
from pipeline.model.margins.base import build_margin
from pipeline.model.teacher import Teacher, TeacherClasses

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

TEACHER = TeacherConfig(checkpoint="unused")
SUM = SumConfig(
    parts={
        "centre": HeadPart(head=CentreConfig(strength=0.1)),
        "likeness": HeadPart(head=DistillationConfig(teacher=TEACHER, target=CosineTarget())),
        "opinion": HeadPart(head=DistillationConfig(teacher=TEACHER, target=LogitTarget(block_bytes=1 << 16))),
        "harmonic": HeadPart(head=HarmonicConfig(teacher=TEACHER, block_bytes=1 << 16)),
    }
)


def test_a_sum_on_the_gpu_equals_float64_on_the_cpu() -> None:
    num_classes, batch, dim = 1009, 64, 128
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(num_classes, dim, generator=generator)
    labels = torch.randint(0, 16, (batch,), generator=generator)
    student, teacher = (directions[labels] + torch.randn(batch, dim, generator=generator) for _ in range(2))
    ids, valid = torch.arange(batch), torch.arange(batch) % 7 != 3
    results = []
    for device, dtype in (("cuda", torch.float32), ("cpu", torch.float64)):
        head = build_head(SUM, num_classes, dim, seed=0)
        classes = TeacherClasses(build_margin(ArcFaceMargin(scale=32)), directions.to(device, dtype), None)
        head.attach_teacher(Teacher(dim, classes))
        head.to(device, dtype)
        inputs = student.to(device, dtype, copy=True).requires_grad_()
        labels_there, valid_there = labels.to(device), valid.to(device)
        head.begin_step(labels_there, valid_there, 0, 0.0)
        output = head(
            inputs, labels_there, ids.to(device), valid_there, 0, teacher_embeddings=teacher.to(device, dtype)
        )
        output.loss.backward()
        assert inputs.grad is not None
        centres = head.get_buffer("part_centre.centres")
        results.append([value.detach().double().cpu() for value in (output.loss, inputs.grad, centres)])
    for ours, reference in zip(*results, strict=True):
        assert (ours - reference).norm() <= 1e-5 * reference.norm()
