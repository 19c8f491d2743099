"""Harmonic embeddings: which triplets are formed, by hand and by loops; corners, precision, memory."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pipeline.config.errors import UserError
from pipeline.config.heads import HarmonicConfig
from pipeline.model.head import Head, HeadOutput, build_head
from pipeline.model.teacher import Teacher
from tests.losses.composed_reference import TEACHER
from tests.losses.test_class_blocks import LargestTensor


def build(margin: float = 0.2, block_bytes: int | None = None, dim: int = 2, num_classes: int = 9) -> Head:
    config = HarmonicConfig(teacher=TEACHER, margin=margin, block_bytes=block_bytes)
    head = build_head(config, num_classes, dim, seed=0)
    head.attach_teacher(Teacher(dim, None))
    return head


def call(head: Head, new: Tensor, old: Tensor, labels: list[int], valid: list[bool] | None = None) -> HeadOutput:
    ids, mask = torch.arange(10, 10 + len(labels)), torch.tensor(valid or [True] * len(labels))
    return head(new, torch.tensor(labels), ids, mask, 0, teacher_embeddings=old)


def at(*angles: float) -> Tensor:
    """Points of the circle, with lengths that should not matter."""
    return torch.tensor([[3 * math.cos(a), 3 * math.sin(a)] for a in angles], dtype=torch.float64)


def squared(angle: float) -> float:
    return 2 - 2 * math.cos(angle)


def test_triplets_by_hand() -> None:
    # two photos of two people, the pool on the circle: new 0.0 and 1.0, old 0.5 and 0.9
    new, old = at(0.0, 1.0).requires_grad_(), at(0.5, 0.9)
    output = call(build(margin=0.2), new, old, [0, 1])
    # (anchor, positive): nearest farther negative
    #   new0 old0  d² 0.245: old1 at 0.9 (0.757), new1 farther: beyond the margin
    #   old0 new0  d² 0.245: negatives old1 at 0.4 (0.158, nearer), new1 at 0.5: no farther
    #   new1 old1  d² 0.010: old0 at 0.5 (0.245), no: beyond 0.210; new0 farther
    #   old1 new1  d² 0.010: old0 at 0.4 (0.158): semi-hard; new0 farther
    assert output.metrics["num_triplets"].item() == 1
    assert output.metrics["num_dropped_pairs"].item() == 3
    assert output.metrics["semi_hard_share"].item() == pytest.approx(1 / 4)
    assert output.loss.item() == pytest.approx(squared(0.1) - squared(0.4) + 0.2)
    output.loss.backward()
    assert new.grad is not None
    assert new.grad[0].tolist() == [0, 0]
    # d²(old1, new1) falls when new1 turns towards 0.9, clockwise: the gradient points the other way
    assert new.grad[1].norm().item() == pytest.approx(2 * math.sin(0.1) / 3)
    assert new.grad[1] @ at(1.0 + math.pi / 2)[0] > 0


def test_old_embeddings_alone_are_no_triplet() -> None:
    # two photos of one person and one of another; only old ones are near each other
    new, old = at(3.0, 2.9, -2.9), at(0.0, 0.1, 0.25)
    output = call(build(margin=0.1), new, old, [0, 0, 1])
    # for the anchor old0 and its positive old1 at d² 0.010, the old negative at d² 0.062 would be semi-hard
    allowed, with_old_alone = _count(new, old, [0, 0, 1], 0.1)
    assert with_old_alone > allowed, "the case has such triplets"
    assert output.metrics["num_triplets"].item() == allowed
    # person 0 has four embeddings with three positives each, person 1 two with one
    assert output.metrics["semi_hard_share"].item() == pytest.approx(allowed / 14)


def _count(new: Tensor, old: Tensor, labels: list[int], margin: float) -> tuple[int, int]:
    """Pairs with a semi-hard negative: of triplets that are not all old, and of all triplets."""
    pool = torch.cat([new, old])
    pool = pool / pool.norm(dim=1, keepdim=True)
    label, n, counts = labels * 2, len(labels), [0, 0]
    d = ((pool[:, None] - pool) ** 2).sum(2)
    for a in range(2 * n):
        for p in range(2 * n):
            if a != p and label[a] == label[p]:
                found = [k for k in range(2 * n) if label[k] != label[a] and d[a, p] < d[a, k] < d[a, p] + margin]
                counts[0] += any(min(a, p, k) < n for k in found)
                counts[1] += bool(found)
    return counts[0], counts[1]


@pytest.mark.parametrize("block_bytes", [1024, 4096, None])
def test_gradcheck_and_blocks(block_bytes: int | None) -> None:
    generator = torch.Generator().manual_seed(3)
    new = torch.randn(14, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    old = torch.randn(14, 4, generator=generator, dtype=torch.float64)
    labels = [0, 0, 0, 1, 1, 2, 3, 3, 3, 3, 4, 5, 5, 6]
    head = build(margin=0.5, block_bytes=block_bytes, dim=4)
    assert call(head, new, old, labels).metrics["num_triplets"] > 50
    assert torch.autograd.gradcheck(lambda x: call(head, x, old, labels).loss, [new])
    assert call(head, new, old, labels).loss.item() == pytest.approx(
        call(build(margin=0.5, dim=4), new, old, labels).loss.item(), rel=1e-14
    )


def test_float32_against_float64() -> None:
    generator = torch.Generator().manual_seed(4)
    labels = (torch.arange(64) // 4).tolist()
    new, old = torch.randn(2, 64, 32, generator=generator).unbind()
    results = []
    for dtype in (torch.float32, torch.float64):
        leaf = new.to(dtype, copy=True).requires_grad_()
        output = call(build(dim=32, num_classes=16), leaf, old.to(dtype), labels)
        output.loss.backward()
        assert leaf.grad is not None
        results.append((output.loss.double(), leaf.grad.double(), output.metrics["num_triplets"].item()))
    assert results[0][2] == results[1][2] > 100
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-5, atol=0)
    assert (results[0][1] - results[1][1]).norm() < 1e-5 * results[1][1].norm()


def test_descent_makes_new_embeddings_answer_to_old_ones() -> None:
    generator = torch.Generator().manual_seed(5)
    labels = (torch.arange(32) // 2).tolist()
    centres = torch.randn(16, 16, generator=generator)
    old = centres.repeat_interleave(2, 0) + 0.3 * torch.randn(32, 16, generator=generator)
    new = torch.randn(32, 16, generator=generator)
    head = build(margin=0.3, dim=16, num_classes=16)
    before = call(head, new, old, labels)
    for _ in range(200):
        leaf = new.clone().requires_grad_()
        call(head, leaf, old, labels).loss.backward()
        assert leaf.grad is not None
        new = new - 5 * leaf.grad
    after = call(head, new, old, labels)
    assert before.metrics["teacher_cosine"] < 0.1
    assert after.metrics["teacher_cosine"] > 0.3
    cosine = torch.nn.functional.normalize(new) @ torch.nn.functional.normalize(old).t()
    answers = torch.tensor(labels)[cosine.fill_diagonal_(-2).argmax(1)]
    assert (answers == torch.tensor(labels)).float().mean() > 0.9


@pytest.mark.parametrize("labels", [[0], [0, 0, 0], [0, 1, 2]], ids=["one-sample", "one-identity", "no-positives"])
def test_corners_are_finite(labels: list[int]) -> None:
    new = at(*range(len(labels))).requires_grad_()
    output = call(build(), new, at(*(2.0 * k for k in range(len(labels)))), labels)
    output.loss.backward()
    assert output.loss.isfinite()
    assert new.grad is not None
    assert new.grad.isfinite().all()
    if set(labels) == {0}:
        assert output.loss.item() == 0


def test_masked_slots_hold_anything() -> None:
    new, old = at(0.0, 1.0, 2.0), at(0.5, 0.9, 2.2)
    nan = torch.full((2, 2), torch.nan, dtype=torch.float64)
    filled = torch.cat([new, nan]).requires_grad_()
    output = call(build(), filled, torch.cat([old, nan]), [0, 1, 0, -1, 0], [True, True, True, False, False])
    output.loss.backward()
    bare = call(build(), new, old, [0, 1, 0])
    assert output.loss.item() == bare.loss.item() > 0
    assert output.metrics == {name: pytest.approx(value) for name, value in bare.metrics.items()}
    assert filled.grad is not None
    assert not filled.grad[3:].any()
    masked = call(build(), filled, filled.detach(), [0, 1, 0, 1, 0], [False] * 5)
    masked.loss.backward()
    assert masked.loss.item() == 0


def test_mistakes() -> None:
    with pytest.raises(UserError, match="sample 11 has label 9; expected 0 to 8"):
        call(build(), at(0.0, 1.0), at(0.0, 1.0), [0, 9])
    head = build_head(HarmonicConfig(teacher=TEACHER), 9, 16, seed=0)
    with pytest.raises(UserError, match=r"backbone\.embedding_dim: 16, while the teacher of a harmonic head has 32"):
        head.attach_teacher(Teacher(32, None))


def test_distances_are_never_laid_out() -> None:
    batch, dim = 512, 16
    head = build(block_bytes=64 * 1024, dim=dim, num_classes=128)
    new, labels = torch.randn(batch, dim, requires_grad=True), (torch.arange(batch) // 4).tolist()
    with LargestTensor() as largest:
        call(head, new, torch.randn(batch, dim), labels).loss.backward()
    # a block of 16 photos against the pool of 1,024; the pool itself; all distances would be 1,024 · 1,024
    assert largest.num_elements == 2 * batch * dim
