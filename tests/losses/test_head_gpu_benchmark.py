"""What of `benchmarks/head_gpu.py` can be held without a GPU: its peers compute the head's loss, and its refusal."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import head_gpu
from pipeline.config.margins import ArcFaceMargin
from pipeline.model.margins.base import build_margin
from pipeline.model.partial_fc import MarginSoftmaxHead

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize("peer", [1, 2])
def test_peers_compute_the_heads_loss(peer: int) -> None:
    head = MarginSoftmaxHead(50, 16, build_margin(ArcFaceMargin(), 50), seed=0)
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 50, (12,), generator=generator)
    found = []
    for contender in (head_gpu.contenders(head)[0], head_gpu.contenders(head)[peer]):
        embeddings = torch.randn(12, 16, generator=torch.Generator().manual_seed(1), requires_grad=True)
        head.class_centres.grad = None
        loss = contender.loss(embeddings, labels)
        loss.backward()
        assert embeddings.grad is not None
        assert head.class_centres.grad is not None
        found.append((loss.detach(), embeddings.grad, head.class_centres.grad))
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2}[head_gpu.contenders(head)[peer].products]
    for ours, theirs in zip(*found, strict=True):
        assert (ours - theirs).norm() <= tolerance * ours.norm()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_says_that_it_needs_a_gpu() -> None:
    result = subprocess.run(
        [sys.executable, "benchmarks/head_gpu.py"], capture_output=True, text=True, cwd=REPOSITORY, check=False
    )
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr == "no CUDA device: this benchmark measures a GPU\n"
