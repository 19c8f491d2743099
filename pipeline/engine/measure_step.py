"""One training step taken apart: time and memory of each phase, measured on random crops in a process of its own.

    python -m pipeline.engine.measure_step < request.json

It is what `pipeline.engine.estimate` starts; request and answer are JSON. Memory is counted twice: tensors by phase, as
torch's allocator hands them out, and the process's resident memory as Linux counts it, which has what libraries and
the allocator need besides. A rank's part of a run on several ranks is imitated by one process: the head gets as many
embeddings as all ranks would gather, and the class centres of one rank.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from pipeline.config.errors import UserError
from pipeline.config.load import validate_config
from pipeline.engine import optim
from pipeline.engine.backends import prepare_for_training
from pipeline.engine.batch_norm import RunningStatistics
from pipeline.engine.ddp import DDPBackend
from pipeline.engine.head_optim import HeadOptimizer
from pipeline.engine.memory import keep_freed_memory
from pipeline.engine.state import training_tensors
from pipeline.model.backbones import build_backbone
from pipeline.model.gradient_memory import kept_bytes
from pipeline.model.head import build_head
from pipeline.model.huge_pages import MMAP_THRESHOLD_BYTES

PHASES = ("forward", "head", "backward", "backbone_optimizer", "head_optimizer")
_NUM_TIMED_STEPS = 4
_PHOTOS_PER_PERSON = 4
_PROCESS = Path("/proc/self")
_MARK = "phase:"


class StepRequest(BaseModel):
    """What to measure."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    config: dict[str, Any]
    num_rows: int
    """Class centres of the rank."""
    num_queries: int
    """Embeddings that the head sees in a call: those of all ranks."""
    crop_px: int
    holds_activations: bool
    """Whether a micro-batch's activations wait while the head works; not so where the head gets the whole batch."""
    accumulates: bool
    """Whether gradients of an earlier micro-batch are there already."""


class StepMeasurement(BaseModel):
    """What it came to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seconds: dict[str, float]
    """By phase, the median of a few."""
    processor_seconds: dict[str, float]
    """As `seconds`, of all threads together, and not counting while others have the processor."""
    resident_bytes: int
    """Resident at most during the steps, above the process's own before the model was built."""
    process_bytes: int
    """The process's own, before the model was built."""
    live_bytes: dict[str, int]
    """By phase, tensors there at most, those that stay from step to step included."""
    mapped_bytes: dict[str, int]
    """As `live_bytes`, of tensors that the allocator gives back to the system when they are freed."""
    activation_bytes: int
    """Tensors that the forward pass of a micro-batch leaves for its backward pass."""
    head_working_bytes: int
    """Tensors that the head needs at most while it works, beside its own and their gradients."""
    tensor_bytes: dict[str, int]
    """Sizes by what they belong to: backbone, backbone_optimizer, backbone_gradient, head, head_optimizer,
    head_gradient; all but the gradients stay from step to step."""

    @property
    def greatest_heap_bytes(self) -> int:
        """The most that is there at once of tensors that come from the allocator's heap."""
        return max(value - self.mapped_bytes[phase] for phase, value in self.live_bytes.items())


def measure(request: StepRequest) -> StepMeasurement:
    """Build the model, take a few steps, measure each phase. A single process's affair, which should be a fresh one."""
    keep_freed_memory()
    config = validate_config(request.config)
    local_batch = config.training.local_batch
    generator = torch.Generator().manual_seed(0)
    size = (local_batch, 3, request.crop_px, request.crop_px)
    images = torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)
    images = images.contiguous(memory_format=torch.channels_last)  # as the loader lays them out
    _warm_up()
    base = resident_bytes()
    model = build_backbone(config.backbone, request.crop_px, config.seed)
    prepare_for_training(model, config.training)
    training = config.training
    backend = DDPBackend(model, config.optim.backbone, training.precision, torch.device("cpu"), training.compile)
    norms = RunningStatistics(model)
    head = build_head(config.head, request.num_rows, config.backbone.embedding_dim, config.seed)
    if head.needs_teacher:
        raise UserError("head.kind", "a head with a teacher is not estimated", "another head")
    head_optimizer = HeadOptimizer(config.optim.head, head)
    # people with several photos each, for losses over pairs
    people = torch.randint(0, request.num_rows, (request.num_queries,), generator=generator)
    labels = people.repeat_interleave(_PHOTOS_PER_PERSON)[: request.num_queries]
    valid, sample_ids = torch.ones(len(labels), dtype=torch.bool), torch.arange(len(labels))
    # a run on ranks rounds up, so that the gathered embeddings are at least this rank's own
    copies = -(-request.num_queries // local_batch)

    def forward() -> torch.Tensor:
        with norms.micro_batch(is_filler=False):
            return backend.forward(images)

    def work_head(embeddings: torch.Tensor) -> torch.Tensor:
        leaf = embeddings.detach().repeat(copies, 1)[: request.num_queries].requires_grad_()
        head(leaf, labels, sample_ids, valid, step=0).loss.backward()
        assert leaf.grad is not None
        return leaf.grad[:local_batch].clone()

    def micro_batch(record: Callable[[str], AbstractContextManager[Any]]) -> None:
        with record("forward"):
            embeddings = forward()
        if not request.holds_activations:
            embeddings = embeddings.detach()
        with record("head"):
            gradient = work_head(embeddings)
        if not request.holds_activations:
            embeddings = forward()
        with record("backward"):
            backend.backward(embeddings, gradient)

    def step(record: Callable[[str], AbstractContextManager[Any]]) -> dict[str, int]:
        head.begin_step(labels, valid, step=0, epoch=0.0)
        if request.accumulates:
            micro_batch(_unrecorded)
        micro_batch(record)
        norms.finish_step(1 + request.accumulates)
        gradients = {
            "backbone_gradient": _gradient_bytes(model.parameters()),
            "head_gradient": _gradient_bytes([*head.parameters(), *(a.leaf for a in head.active_rows().values())]),
        }
        with record("backbone_optimizer"):
            norm = backend.gradient_norm()
            # a learning rate of 0: random labels would drive the weights to infinity
            backend.step(0.0, norm, config.optim.clip_backbone_norm)
        with record("head_optimizer"):
            norm = head_optimizer.gradient_norm()
            head_optimizer.step(0.0, norm, config.optim.clip_head_norm)
        return gradients

    backend.prime_optimizer()
    reset_peak()
    step(_unrecorded)
    clock = _Clock()
    for _ in range(_NUM_TIMED_STEPS):
        gradients = step(clock.phase)
    resident = peak_resident_bytes() - base
    # memory of a gradient that stays from step to step is not made in one
    kept = sum(kept_bytes(parameter) for parameter in head.parameters())
    live, mapped = _live_bytes(step)
    sizes = dict.fromkeys(("backbone", "backbone_optimizer", "head", "head_optimizer"), 0)
    lasting_mapped = kept
    for name, tensor in training_tensors(backend, head, head_optimizer, mesh=None).items():
        sizes[name.partition("/")[0]] += tensor.nbytes
        lasting_mapped += tensor.nbytes if tensor.nbytes >= MMAP_THRESHOLD_BYTES else 0
    lasting = sum(sizes.values()) + kept
    return StepMeasurement(
        seconds={phase: statistics.median(values) for phase, values in clock.seconds.items()},
        processor_seconds={phase: statistics.median(values) for phase, values in clock.processor_seconds.items()},
        resident_bytes=resident,
        process_bytes=base,
        live_bytes={phase: live[phase].most + lasting for phase in PHASES},
        mapped_bytes={phase: mapped[phase].most + lasting_mapped for phase in PHASES},
        activation_bytes=live["forward"].after - live["forward"].before,
        head_working_bytes=max(0, live["head"].most - live["head"].before - gradients["head_gradient"] + kept),
        tensor_bytes=sizes | gradients,
    )


def _gradient_bytes(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.grad.nbytes for p in {id(p): p for p in parameters}.values() if p.grad is not None)


@dataclass(frozen=True)
class _Span:
    """Bytes of tensors made since the step began, in a phase: at its beginning, at most, at its end."""

    before: int
    most: int
    after: int


def _live_bytes(step: Callable[..., Any]) -> tuple[dict[str, _Span], dict[str, _Span]]:
    """Tensors by phase, and the large ones among them."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        step(lambda name: record_function(_MARK + name))
    assert profiler.profiler is not None
    assert profiler.profiler.kineto_results is not None
    changes: list[tuple[int, int]] = []
    phases: dict[str, tuple[int, int]] = {}
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            changes.append((event.start_ns(), event.nbytes()))
        elif event.name().startswith(_MARK):
            phases[event.name().removeprefix(_MARK)] = (event.start_ns(), event.end_ns())
    changes.sort(key=lambda change: change[0])
    large = [change for change in changes if abs(change[1]) >= MMAP_THRESHOLD_BYTES]
    all_spans, large_spans = (
        {phase: _span(some, start, end) for phase, (start, end) in phases.items()} for some in (changes, large)
    )
    return all_spans, large_spans


def _span(changes: list[tuple[int, int]], start: int, end: int) -> _Span:
    before = sum(size for moment, size in changes if moment < start)
    values = list(itertools.accumulate((size for moment, size in changes if start <= moment < end), initial=before))
    return _Span(before, max(values), values[-1])


def resident_bytes() -> int:
    """Resident memory of this process now."""
    return int((_PROCESS / "statm").read_text().split()[1]) * 4096


def peak_resident_bytes() -> int:
    """Greatest resident memory of this process since `reset_peak`."""
    for line in (_PROCESS / "status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM in /proc/self/status")


def reset_peak() -> None:
    """Begin `peak_resident_bytes` anew.

    Raises:
        UserError: this system does not count so.
    """
    try:
        (_PROCESS / "clear_refs").write_text("5")
    except OSError as error:
        raise UserError(
            _PROCESS / "clear_refs", f"cannot be written ({error.strerror})", "Linux, where memory can be measured"
        ) from error


class _Clock:
    """Collects the times of phases over several steps."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.processor_seconds: dict[str, list[float]] = defaultdict(list)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        began, processor_began = time.perf_counter(), time.process_time()
        yield
        self.seconds[name].append(time.perf_counter() - began)
        self.processor_seconds[name].append(time.process_time() - processor_began)


@contextmanager
def _unrecorded(name: str) -> Iterator[None]:
    yield


def _warm_up() -> None:
    """Let the libraries allocate what they keep, so that it is not counted as the model's."""
    layer = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(8 * 36, 4))
    layer(torch.zeros(2, 3, 8, 8)).sum().backward()
    optim.build_optimizer(validate_config(_LEAST).optim.head, dict(layer.named_parameters())).step()


_LEAST = {"output": "", "data": {"path": ""}, "training": {"epochs": 1, "global_batch": 2, "local_batch": 2}}


def main() -> None:
    """Entry point."""
    request = StepRequest.model_validate_json(sys.stdin.read())
    answer: dict[str, Any]
    try:
        answer = {"measurement": measure(request).model_dump()}
    except UserError as error:
        answer = {"error": [error.where, error.found, error.expected, error.remedy]}
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
