"""What the step's forward and backward passes show to a teacher, and when."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pipeline.config.optim import SGDConfig
from pipeline.data.loader import MicroBatch, StepBatch
from pipeline.engine.batch_norm import RunningStatistics
from pipeline.engine.ddp import DDPBackend
from pipeline.engine.gradients import GradientPass
from pipeline.model.head import Head, HeadOutput
from pipeline.model.head_sum import SumHead

LOCAL_BATCH = 4


class Pixels(nn.Module):
    """Embeds a crop as its two first pixels, times a learnt factor; keeps what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))
        self.shown: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.shown.append(images)
        return self.factor * images.flatten(1)[:, :2].float()


class Imitation(Head):
    """Squared distance to the teacher, or to zero without one."""

    def __init__(self, needs_teacher: bool, needs_whole_batch: bool) -> None:
        super().__init__()
        self.needs_teacher, self.needs_whole_batch = needs_teacher, needs_whole_batch
        self.taught: list[Tensor | None] = []

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
        self.taught.append(teacher_embeddings)
        difference = embeddings - (0 if teacher_embeddings is None else teacher_embeddings)
        total = len(labels) if num_valid is None else num_valid
        return HeadOutput(difference.square().sum() / total, {})


@pytest.mark.parametrize("needs_whole_batch", [False, True], ids=["by-micro-batch", "whole-batch"])
def test_a_teacher_sees_the_same_crops_while_a_working_part_asks_for_it(needs_whole_batch: bool) -> None:
    student, teacher = Pixels(), Pixels().requires_grad_(False)
    imitation, other = Imitation(True, needs_whole_batch), Imitation(False, needs_whole_batch)
    head = SumHead({"other": (other, [(0, 1), (1, 0)]), "imitation": (imitation, [(0, 0), (1, 0), (1, 1)])})
    backend = DDPBackend(student, SGDConfig(), "fp32", torch.device("cpu"))
    step_of = GradientPass(backend, RunningStatistics(student), head, teacher, seed=0)
    micros = [
        MicroBatch(
            images=torch.randint(0, 256, (LOCAL_BATCH, 3, 2, 2), dtype=torch.uint8),
            labels=torch.zeros(LOCAL_BATCH, dtype=torch.int64),
            sample_ids=torch.arange(LOCAL_BATCH),
            valid=torch.ones(LOCAL_BATCH, dtype=torch.bool),
            position=LOCAL_BATCH * number,
            is_filler=False,
        )
        for number in range(2)
    ]
    batch, num_valid = StepBatch(0, micros, 2, 0, 0.0, []), torch.full((2,), float(LOCAL_BATCH))
    step_of.backward(batch, num_valid, 0, 0.5)
    assert teacher.shown == []
    assert set(other.taught) == {None}
    step_of.backward(batch, num_valid, 1, 1.0)
    images = torch.cat([micro.images for micro in micros])
    assert torch.equal(torch.cat(teacher.shown), images)
    assert len(imitation.taught) == (1 if needs_whole_batch else 2)
    assert torch.equal(torch.cat([t for t in imitation.taught if t is not None]), images.flatten(1)[:, :2].float())
