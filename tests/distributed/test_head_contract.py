"""What the trainer and checkpoints rely on: starts, errors, precision, DDP, empty partitions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline import dist
from pipeline.config.errors import UserError
from pipeline.config.heads import MarginSoftmaxConfig
from pipeline.config.margins import ArcFaceMargin, SoftmaxMargin
from pipeline.model.head import Head, build_head, register_head
from pipeline.model.partial_fc import build_margin_softmax, initial_centres
from tests.distributed.processes import run_ranks

ARCFACE = MarginSoftmaxConfig(margin=ArcFaceMargin(scale=16, margin=0.3))
SOFTMAX = MarginSoftmaxConfig(margin=SoftmaxMargin())


def call(
    head: Head, embeddings: Tensor, labels: list[int], valid: list[bool] | None = None, first_id: int = 0
) -> Tensor:
    ids = torch.arange(first_id, first_id + len(labels))
    mask = torch.tensor(valid or [True] * len(labels))
    return head(embeddings, torch.tensor(labels), ids, mask, 0).loss


def test_kinds_are_not_overwritten() -> None:
    build_head(ARCFACE, 3, 8, seed=0)
    with pytest.raises(ValueError, match="'margin_softmax' is registered already"):
        register_head("margin_softmax")(build_margin_softmax)


def test_initial_centres_are_normal_and_a_function_of_seed_and_class() -> None:
    centres = initial_centres(5, 0, 9000, 30)
    assert centres.mean().abs() < 1e-4
    assert centres.std() == pytest.approx(0.01, rel=0.01)
    assert (centres / 0.01).pow(4).mean() == pytest.approx(3.0, rel=0.03)
    assert centres.unique().numel() > 0.99 * centres.numel()
    # across the border of what is drawn at once
    assert torch.equal(initial_centres(5, 8100, 8300, 30), centres[8100:8300])
    assert not torch.equal(initial_centres(6, 0, 10, 30), centres[:10])
    correlation = torch.corrcoef(centres.t()) - torch.eye(30)
    assert correlation.abs().max() < 0.06
    assert initial_centres(5, 4, 4, 30).shape == (0, 30)


def own_rows(config: MarginSoftmaxConfig, num_classes: int) -> dict[str, tuple[Tensor, int]]:
    head = build_head(config, num_classes, 10, seed=3)
    named = dict(head.named_parameters())
    sharded = head.sharded_tensors()
    assert all(named[name] is parameter for name, (parameter, _) in sharded.items())
    assert sharded.keys() == named.keys()
    assert sharded.keys() <= head.state_dict().keys()
    return {name: (parameter.detach(), rows) for name, (parameter, rows) in sharded.items()}


@pytest.mark.parametrize(("num_classes", "size"), [(11, 2), (3, 4)])
def test_initial_centres_do_not_depend_on_the_number_of_ranks(num_classes: int, size: int) -> None:
    whole = own_rows(SOFTMAX, num_classes)
    assert whole["class_centres"][0].shape == (num_classes, 10)
    ranks = run_ranks(own_rows, size, SOFTMAX, num_classes)
    for name, (expected, rows) in whole.items():
        assert all(rank[name][1] == rows == num_classes for rank in ranks)
        assert torch.equal(torch.cat([rank[name][0] for rank in ranks]), expected)


def bad_labels() -> list[str]:
    messages = []
    head = build_head(ARCFACE, 5, 8, seed=0)
    is_last = dist.rank() == dist.world_size() - 1
    first_id = 10 * dist.rank()
    for labels in ([0, 5], [-1, 4], [2**40, 0]):
        try:
            call(head, torch.ones(2, 8), labels if is_last else [0, 1], first_id=first_id)
        except UserError as error:
            messages.append(str(error))
    # the ranks are still in step, and a masked slot may hold anything
    call(head, torch.ones(2, 8, requires_grad=True), [99, 0], [False, True]).backward()
    return messages


@pytest.mark.parametrize("size", [1, 3])
def test_a_label_out_of_range_names_the_sample_on_all_ranks(size: int) -> None:
    ranks = [bad_labels()] if size == 1 else run_ranks(bad_labels, size)
    last = 10 * (size - 1)
    for messages in ranks:
        assert len(messages) == 3
        assert f"sample {last + 1} has label 5; expected 0 to 4" in messages[0]
        assert f"sample {last} has label -1" in messages[1]
        assert f"sample {last} has label {2**40}" in messages[2]


@pytest.mark.parametrize("block_bytes", [1024, None], ids=["blocks", "one-block"])
@pytest.mark.parametrize("config", [ARCFACE, SOFTMAX], ids=["arcface", "softmax"])
def test_precision_is_float32_whatever_autocast_says(config: MarginSoftmaxConfig, block_bytes: int | None) -> None:
    config = config.model_copy(update={"block_bytes": block_bytes})
    generator = torch.Generator().manual_seed(0)
    narrow = torch.randn(8, 32, generator=generator).bfloat16()
    labels = [0, 1, 2, 3, 4, 5, 6, 6]
    gradients = []
    for embeddings, enabled in ((narrow.clone(), True), (narrow.float(), False)):
        head = build_head(config, 50, 32, seed=0)
        embeddings.requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = call(head, embeddings, labels)
            loss.backward()
        assert loss.dtype == torch.float32
        gradients.append((loss.detach(), head.get_parameter("class_centres").grad))
    assert torch.equal(gradients[0][0], gradients[1][0])
    assert gradients[0][1] is not None
    assert gradients[1][1] is not None
    assert torch.equal(gradients[0][1], gradients[1][1])


def test_hopeless_targets_do_not_saturate() -> None:
    head = build_head(MarginSoftmaxConfig(margin=ArcFaceMargin(scale=64, margin=0.5)), 2, 4, seed=0)
    centres = head.get_parameter("class_centres")
    with torch.no_grad():
        centres.copy_(torch.tensor([[1.0, 0, 0, 0], [-1.0, 0, 0, 0]]))
    embeddings = torch.tensor([[-1.0, 0, 0, 0.0]], requires_grad=True)
    loss = call(head, embeddings, [0])
    # cos = −1 for the target, 1 for the other class
    assert loss.item() == pytest.approx(64 * (1 + 1 + 0.5 * 0.479425539), rel=1e-6)
    loss.backward()
    assert centres.grad is not None
    assert embeddings.grad is not None
    assert centres.grad.isfinite().all()
    assert embeddings.grad.isfinite().all()


def train_linear(num_steps: int) -> dict[str, Tensor]:
    """Plain gradient descent on a linear backbone under DDP; rank-independent data."""
    rank, size = dist.rank(), dist.world_size()
    generator = torch.Generator().manual_seed(1)
    images, labels = torch.randn(12, 6, generator=generator), torch.arange(12) % 7
    model: nn.Module = nn.Linear(6, 8)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    wrapped = DistributedDataParallel(model) if size > 1 else model
    head = build_head(ARCFACE, 7, 8, seed=0)
    own = slice(rank * 12 // size, (rank + 1) * 12 // size)
    losses = []
    for _ in range(num_steps):
        loss = call(head, wrapped(images[own]), labels[own].tolist())
        loss.backward()
        losses.append(loss.detach())
        with torch.no_grad():
            for parameter in (*model.parameters(), *head.parameters()):
                assert parameter.grad is not None
                parameter -= 0.01 * parameter.grad
                parameter.grad = None
    return {
        "losses": torch.stack(losses),
        "weight": model.get_parameter("weight").detach(),
        "centres": head.get_parameter("class_centres").detach(),
    }


@pytest.mark.parametrize("size", [2, 4])
def test_training_under_ddp_equals_a_single_process(size: int) -> None:
    single = train_linear(10)
    ranks = run_ranks(train_linear, size, 10)
    assert single["losses"][-1] < single["losses"][0]
    for rank in ranks:
        assert torch.allclose(rank["losses"], single["losses"], rtol=1e-5, atol=0)
        assert torch.allclose(rank["weight"], single["weight"], rtol=1e-4, atol=1e-6)
    assert torch.allclose(torch.cat([rank["centres"] for rank in ranks]), single["centres"], rtol=1e-4, atol=1e-6)
