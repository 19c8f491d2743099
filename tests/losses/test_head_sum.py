"""Weighted sums of heads: schedules, parts that rest, names, metrics."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pipeline.config.errors import UserError
from pipeline.config.heads import CentreConfig, HeadPart, MarginSoftmaxConfig, SumConfig, weight_at
from pipeline.config.margins import CosFaceMargin, SoftmaxMargin
from pipeline.config.optim import AdamWConfig, HeadOptimizerConfig, SGDConfig
from pipeline.engine.head_optim import HeadOptimizer
from pipeline.model.head import ActiveRows, Head, HeadOutput, build_head
from pipeline.model.head_sum import SumHead
from pipeline.model.teacher import Teacher

SOFTMAX = MarginSoftmaxConfig(margin=CosFaceMargin(scale=8, margin=0.2))
CENTRE = CentreConfig(strength=1.0)
LABELS, IDS, VALID = torch.tensor([0, 1, 2, 2, 4, 0]), torch.arange(6), torch.ones(6, dtype=torch.bool)
EMBEDDINGS = torch.randn(6, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_weights_at_hand_computed_epochs() -> None:
    schedule: list[tuple[float, float]] = [(2, 1.0), (4, 0.5), (6, 0.0), (6, 3.0), (7, 3.0)]
    epochs = [0, 2, 3, 4, 5, 5.999999, 6, 6.5, 100]
    assert [weight_at(schedule, epoch) for epoch in epochs] == pytest.approx(
        [1, 1, 0.75, 0.5, 0.25, 0, 3, 3, 3], abs=1e-6
    )
    assert weight_at(schedule, 6) == 3.0
    assert weight_at(0.3, 17) == 0.3


def build(**weights: float | list[tuple[float, float]]) -> SumHead:
    sections = {"softmax": SOFTMAX, "centre": CENTRE}
    config = SumConfig(parts={name: HeadPart(weight=w, head=sections[name]) for name, w in weights.items()})
    head = build_head(config, 5, 8, seed=0).double()
    assert isinstance(head, SumHead)
    return head


def call(head: Head, step: int = 0, epoch: float = 0.0, embeddings: Tensor = EMBEDDINGS) -> HeadOutput:
    head.begin_step(LABELS, VALID, step, epoch)
    return head(embeddings, LABELS, IDS, VALID, step)


def test_loss_gradient_and_metrics_are_the_parts_weighted() -> None:
    leaves = [EMBEDDINGS.clone().requires_grad_() for _ in range(3)]
    parts = [build_head(section, 5, 8, seed=0).double() for section in (SOFTMAX, CENTRE)]
    outputs = [call(part, embeddings=leaf) for part, leaf in zip(parts, leaves, strict=False)]
    total = call(build(softmax=0.7, centre=0.2), embeddings=leaves[2])
    for output in (*outputs, total):
        output.loss.backward()
    assert total.loss.item() == pytest.approx(0.7 * outputs[0].loss.item() + 0.2 * outputs[1].loss.item(), rel=1e-14)
    gradients = [leaf.grad for leaf in leaves]
    assert gradients[0] is not None
    assert gradients[1] is not None
    torch.testing.assert_close(gradients[2], 0.7 * gradients[0] + 0.2 * gradients[1])
    expected = {f"softmax/{name}": value for name, value in outputs[0].metrics.items()}
    expected |= {f"centre/{name}": value for name, value in outputs[1].metrics.items()}
    expected |= {"softmax/loss": outputs[0].loss, "centre/loss": outputs[1].loss}
    expected |= {"softmax/weight": torch.tensor(0.7), "centre/weight": torch.tensor(0.2)}
    assert total.metrics.keys() == expected.keys()
    for name, value in total.metrics.items():
        assert not value.requires_grad
        assert value.item() == pytest.approx(expected[name].item()), name


def test_names_are_those_of_parameters_and_buffers() -> None:
    sections = {"type": SOFTMAX, "keys": CENTRE, "forward": MarginSoftmaxConfig(margin=SoftmaxMargin())}
    head = build_head(SumConfig(parts={n: HeadPart(head=s) for n, s in sections.items()}), 5, 8, seed=0)
    live = dict(head.named_parameters()) | dict(head.named_buffers())
    sharded = head.sharded_tensors()
    assert len(sharded) == 4
    assert all(live[name] is tensor and rows == 5 for name, (tensor, rows) in sharded.items())
    assert sharded.keys() <= head.state_dict().keys()


def test_calls_for_several_micro_batches_add_up() -> None:
    head = build(softmax=0.7)
    valid = torch.tensor([True, True, False, True, True, True])
    head.begin_step(LABELS, valid, 0, 0.0)
    whole = head(EMBEDDINGS, LABELS, IDS, valid, 0)
    outputs = [
        head(EMBEDDINGS[part], LABELS[part], IDS[part], valid[part], 0, num_valid=valid.sum())
        for part in (slice(0, 3), slice(3, 6))
    ]
    assert sum(output.loss.item() for output in outputs) == pytest.approx(whole.loss.item())
    # metrics are means over a call's own slots: 2 and 3 of 5
    mean = 0.4 * outputs[0].metrics["softmax/loss"] + 0.6 * outputs[1].metrics["softmax/loss"]
    assert mean.item() == pytest.approx(whole.metrics["softmax/loss"].item())


class Watched(Head):
    """A head with a dense and a row-sparse parameter, which notes what it hears."""

    def __init__(self, needs_whole_batch: bool = False, needs_teacher: bool = False) -> None:
        super().__init__()
        self.needs_whole_batch, self.needs_teacher = needs_whole_batch, needs_teacher
        self.scale = nn.Parameter(torch.ones(1, 2))
        self.table = nn.Parameter(torch.ones(5, 2))
        self.heard: list[str] = []
        self._active: dict[str, ActiveRows] = {}

    def attach_teacher(self, teacher: Teacher) -> None:
        self.heard.append("teacher")

    def begin_step(self, labels: Tensor, valid: Tensor, step: int, epoch: float) -> None:
        self.heard.append(f"step {step}")
        rows = labels.unique()
        self._active = {"table": ActiveRows(rows, nn.Parameter(self.table.detach()[rows]), None)}

    def forward(self, embeddings: Tensor, *args: Tensor | int, **kwargs: Tensor | None) -> HeadOutput:
        return HeadOutput(self.scale.sum() + (self._active["table"].leaf ** 2).sum() + 0 * embeddings.sum(), {})

    def sharded_tensors(self) -> dict[str, tuple[Tensor, int]]:
        return {"table": (self.table, 5)}

    def row_sparse(self) -> frozenset[str]:
        return frozenset({"table"})

    def active_rows(self) -> dict[str, ActiveRows]:
        return self._active


@pytest.mark.parametrize("config", [SGDConfig(lr=0.1), AdamWConfig(lr=0.1)], ids=["sgd", "adamw"])
def test_a_part_that_rests_does_not_move_at_all(config: HeadOptimizerConfig) -> None:
    """It rests, works, rests again: no decay, no momentum, no step counted; then it works as if nothing had been."""
    watched, always = Watched(), Watched()
    head = SumHead({"watched": (watched, [(0, 0), (0.5, 1), (2, 1), (2, 0), (4, 0), (4, 1)]), "always": (always, 1.0)})
    optimizer = HeadOptimizer(config, head)

    def state() -> dict[str, Tensor]:
        live = dict(head.named_parameters()) | optimizer.tensors()
        return {name: value.detach().clone() for name, value in live.items() if "watched" in name}

    def step(epoch: float) -> bool:
        """Do a step; whether anything of the watched part changed."""
        before = state()
        output = call(head, int(epoch), epoch)
        output.loss.backward()
        assert head.active_rows().keys() == {f"part_{name}.table" for name in output_parts(output)}
        optimizer.step(0.1, optimizer.gradient_norm(), None)
        return any(not torch.equal(value, before[name]) for name, value in state().items())

    assert head.row_sparse() == {"part_watched.table", "part_always.table"}
    assert [step(epoch) for epoch in (0, 1, 2, 3, 4)] == [False, True, False, False, True]
    assert watched.heard == ["step 1", "step 4"]
    assert always.heard == [f"step {number}" for number in range(5)]
    # the same two steps in a row, without rests and without a sum
    twin = Watched()
    alone = HeadOptimizer(config, twin)
    for number in (1, 4):
        call(twin, number).loss.backward()
        alone.step(0.1, alone.gradient_norm(), None)
    assert torch.equal(twin.table, watched.table)
    assert torch.equal(twin.scale, watched.scale)
    assert watched.table[3].tolist() == [1.0, 1.0], "no sample of class 3"


def output_parts(output: HeadOutput) -> set[str]:
    return {name.partition("/")[0] for name in output.metrics if name.endswith("/loss")}


def test_it_needs_what_the_working_parts_need() -> None:
    first, second = Watched(needs_whole_batch=True), Watched(needs_teacher=True)
    head = SumHead({"first": (first, [(0, 1), (1, 0)]), "second": (second, [(0, 0), (1, 1)])})
    seen = []
    for epoch in (0.0, 0.5, 1.0):
        call(head, 0, epoch)
        seen.append((head.needs_whole_batch, head.needs_teacher))
    assert seen == [(True, False), (True, True), (False, True)]


def test_before_the_first_step_it_needs_what_any_part_needs() -> None:
    first, second = Watched(needs_whole_batch=True), Watched(needs_teacher=True)
    head = SumHead({"first": (first, [(0, 0), (1, 1)]), "second": (second, [(0, 0), (1, 1)])})
    assert head.needs_whole_batch
    assert head.needs_teacher
    head.attach_teacher(Teacher(8, None))
    assert (first.heard, second.heard) == ([], ["teacher"])


def test_a_label_out_of_range_names_the_sample() -> None:
    head = build(softmax=0.7, centre=0.2)
    with pytest.raises(UserError, match="sample 5 has label 5; expected 0 to 4"):
        head(EMBEDDINGS, torch.tensor([0, 1, 2, 2, 4, 5]), IDS, VALID, 0)
