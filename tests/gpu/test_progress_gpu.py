"""Stages of a step on a GPU: measured on the stream, without waiting for it."""

from __future__ import annotations

import time

import pytest
import torch

from pipeline.progress import Progress, Stage

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_work_counts_for_the_stage_that_queued_it() -> None:
    device = torch.device("cuda")
    x = torch.randn(4096, 4096, device=device)
    x @ x
    torch.cuda.synchronize()
    progress = Progress()
    progress.begin(device, step=0)
    began = time.perf_counter()
    with progress.during(Stage.FORWARD):
        for _ in range(50):
            x @ x
        queued_s = time.perf_counter() - began
    progress.enter(Stage.DATA)
    torch.cuda.synchronize()
    elapsed_s = time.perf_counter() - began
    time.sleep(0.05)
    progress.enter(Stage.OTHER)
    torch.cuda.synchronize()
    taken = progress.take()
    torch.cuda.synchronize()
    assert taken[Stage.FORWARD] > queued_s
    assert taken[Stage.FORWARD] == pytest.approx(elapsed_s, rel=0.3)
    assert taken[Stage.DATA] >= 0.045


def test_a_long_window_keeps_few_events() -> None:
    progress = Progress()
    progress.begin(torch.device("cuda"), step=0)
    for _ in range(3000):
        progress.enter(Stage.FORWARD)
        progress.enter(Stage.HEAD)
        if len(progress._pending) > 500:
            torch.cuda.synchronize()
    assert len(progress._pending) < 600
