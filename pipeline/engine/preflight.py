"""Looks at what a run will depend on, on all its ranks, before it is worth starting it.

Each check gathers what every rank finds and gives one `Finding`; docs/operations.md shows the table.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import socket
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

import torch

from pipeline import dist
from pipeline.config.errors import UserError
from pipeline.config.location import nearest_existing
from pipeline.config.schema import Config
from pipeline.engine.learner import Learner
from pipeline.engine.measure_link import neighbour_bytes_per_s, reduction_s_per_byte
from pipeline.engine.run import RunPlan, plan_run

SHARED_MEMORY = Path("/dev/shm")
_NEEDED_SHARED_MEMORY_BYTES = 2**30  # what NCCL's manual asks for in containers
_VERSIONS_OF = ("torch", "numpy", "simplejpeg", "pyarrow")
_CLOCK_WARNING_S, _CLOCK_FAILURE_S = 1.0, 60.0
_MOST_COMMUNICATION = 0.5
"""Of the backbone's work in a step: what exceeds it cannot hide behind the backward pass."""
_SLOW_LINK = 3.0
"""A link is slow that is so many times slower than the median."""
_NUM_PASSES = 3


class Verdict(StrEnum):
    """What a finding means for the run."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"


@dataclass(frozen=True)
class Finding:
    """A row of the table."""

    subject: str
    verdict: Verdict
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class RankFacts:
    """What a rank finds without help from the others."""

    host: str
    config: str
    """Hash of the resolved configuration, shortened."""
    versions: str
    device: str
    num_threads: int
    num_cores: int
    data: str
    """Digests of the samples and of the label map, empty where it cannot be used."""
    mistake: str
    """Why the run cannot be planned on this rank; empty where it can."""
    shared_memory_bytes: int
    """Free, in /dev/shm."""


def preflight(config: Config) -> list[Finding]:
    """Check everything; the same findings on all ranks. Collective on all ranks, in a process group of its own.

    Raises:
        UserError: this rank has no GPU, where one is asked for.
    """
    device = dist.initialise(config.device)
    try:
        return inspect(config, device)
    finally:
        dist.shutdown()


def inspect(config: Config, device: torch.device) -> list[Finding]:
    """As `preflight`, inside a process group that is there already."""
    plan: RunPlan | None = None
    mistake = ""
    try:
        plan = plan_run(config)
    except UserError as error:
        mistake = str(error)
    facts = dist.all_gather_objects(_facts(config, device, plan, mistake))
    findings = [
        _same("configuration", [f.config for f in facts], "start all ranks with one file and the same overrides"),
        _same("versions", [f.versions for f in facts], "install from one constraints.txt, or use one image"),
        _devices(facts, device),
        _shared_memory(facts, device),
        _clocks(dist.all_gather_objects(_time_after_barrier())),
        _data(facts),
        _output(config.output),
    ]
    if not any(f.mistake for f in facts):
        assert plan is not None
        learner = Learner(replace(plan, resume=None), device)
        findings.append(_disk(plan, learner))
        if dist.world_size() > 1:
            findings += [_link(plan, learner, device), _neighbours(device)]
    return findings


def table(findings: Sequence[Finding]) -> str:
    """Rows for a terminal, each with its remedy below, and the sum of them."""
    width = max(len(finding.subject) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.verdict:<8} {finding.subject:<{width}}  {finding.found}")
        if finding.remedy:
            lines.append(f"{'':<8} {'':<{width}}  → {finding.remedy}")
    counts = {verdict: sum(finding.verdict is verdict for finding in findings) for verdict in Verdict}
    lines.append(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    return "\n".join(lines)


def _facts(config: Config, device: torch.device, plan: RunPlan | None, mistake: str) -> RankFacts:
    dumped = json.dumps(config.model_dump(mode="json"), sort_keys=True)
    versions = [f"{name} {importlib.metadata.version(name)}" for name in _VERSIONS_OF]
    description = "CPU"
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        description = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        versions += [f"CUDA {torch.version.cuda}", f"NCCL {'.'.join(map(str, torch.cuda.nccl.version()))}"]
    return RankFacts(
        host=socket.gethostname(),
        config=f"sha256 {hashlib.sha256(dumped.encode()).hexdigest()[:12]}…",
        versions=", ".join([f"Python {platform.python_version()}", *versions]),
        device=description,
        num_threads=torch.get_num_threads(),
        num_cores=len(os.sched_getaffinity(0)),
        data="" if plan is None else f"samples {plan.split.digest[:12]}…, labels {plan.label_map[:12]}…",
        mistake=mistake,
        shared_memory_bytes=shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else 0,
    )


def _same(subject: str, values: Sequence[str], remedy: str) -> Finding:
    """Whether all ranks found the same."""
    ranks = _by_value(values)
    if len(ranks) == 1:
        return Finding(subject, Verdict.OK, f"{values[0]}, the same on {_count(len(values))}")
    found = "; ".join(f"{_name(some)}: {value[:160]}" for value, some in ranks.items())
    return Finding(subject, Verdict.FAILURE, found, remedy)


def _devices(facts: Sequence[RankFacts], device: torch.device) -> Finding:
    ranks = _by_value([f.device for f in facts])
    if device.type == "cuda":
        found = "; ".join(f"{kind} on {_name(some)}" for kind, some in ranks.items())
        if len(ranks) == 1:
            return Finding("devices", Verdict.OK, found)
        return Finding("devices", Verdict.WARNING, found, "a step takes as long as on the slowest: use one kind")
    hosts = _by_value([f.host for f in facts])
    for host, some in hosts.items():
        threads, cores = sum(facts[rank].num_threads for rank in some), facts[some[0]].num_cores
        if threads > cores:
            found = f"{threads} threads of {_name(some)} on {cores} cores of {host}"
            fair = max(1, cores // len(some))
            return Finding("devices", Verdict.WARNING, found, f"export OMP_NUM_THREADS={fair}, or start fewer ranks")
    return Finding("devices", Verdict.OK, f"CPU, {_count(len(facts))} on {len(hosts)} host{'s' * (len(hosts) > 1)}")


def _shared_memory(facts: Sequence[RankFacts], device: torch.device) -> Finding:
    least = min(f.shared_memory_bytes for f in facts)
    found = f"{_size(least)} free in {SHARED_MEMORY}"
    if device.type != "cuda":
        return Finding("shared memory", Verdict.OK, f"{found}; gloo needs none")
    if least >= _NEEDED_SHARED_MEMORY_BYTES:
        return Finding("shared memory", Verdict.OK, found)
    remedy = "a memory emptyDir at /dev/shm in Kubernetes, --shm-size=1g for docker"
    return Finding("shared memory", Verdict.WARNING, f"{found}; NCCL asks for 1 GiB", remedy)


def _clocks(times: Sequence[float]) -> Finding:
    skew_s = max(times) - min(times)
    found = f"{skew_s:.3f} s apart at most"
    if skew_s < _CLOCK_WARNING_S:
        return Finding("clocks", Verdict.OK, found)
    late, early = times.index(min(times)), times.index(max(times))
    verdict = Verdict.FAILURE if skew_s >= _CLOCK_FAILURE_S else Verdict.WARNING
    return Finding("clocks", verdict, f"{found}: rank {late} behind rank {early}", "let chrony or NTP set them")


def _time_after_barrier() -> float:
    dist.barrier()
    return time.time()


def _data(facts: Sequence[RankFacts]) -> Finding:
    mistakes = _by_value([f.mistake for f in facts])
    if list(mistakes) != [""]:
        found = "; ".join(f"{_name(some)}: {mistake}" for mistake, some in mistakes.items() if mistake)
        return Finding("run and data", Verdict.FAILURE, found, "mend this first; the rest was not looked at")
    return _same("run and data", [f.data for f in facts], "copy one data set to all nodes, or mount one")


def _output(output: Path) -> Finding:
    """Whether all ranks write to one and the same directory: each writes its part of a checkpoint there."""
    token = output / f".preflight-{dist.all_gather_objects(uuid.uuid4().hex)[0]}"
    reason = ""
    if dist.rank() == 0:
        try:
            output.mkdir(parents=True, exist_ok=True)
            token.touch()
        except OSError as error:
            reason = error.strerror or str(error)
    reason = dist.all_gather_objects(reason)[0]
    blind = [rank for rank, sees in enumerate(dist.all_gather_objects(token.exists())) if not sees]
    dist.barrier()
    if dist.rank() == 0:
        token.unlink(missing_ok=True)
    if reason:
        return Finding("output", Verdict.FAILURE, f"{output}: {reason}", "set output=DIR to a place to write to")
    if blind:
        found = f"{output} of rank 0 is not that of {_name(blind)}"
        return Finding("output", Verdict.FAILURE, found, "set output=DIR on a file system that all nodes share")
    return Finding("output", Verdict.OK, f"{output}, the same for {_count(dist.world_size())}")


def _disk(plan: RunPlan, learner: Learner) -> Finding:
    size = sum(tensor.numel() * tensor.element_size() for tensor in learner.tensors().values())
    keep, folder = _num_kept(plan), plan.checkpoints
    there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0
    needed = max(size, size * (keep + 1) - there)
    free = min(dist.all_gather_objects(shutil.disk_usage(nearest_existing(plan.config.output)).free))
    found = f"{_size(free)} free, {_size(needed)} needed: a checkpoint has {_size(size)}, {keep} stay, one is written"
    if free >= needed:
        return Finding("disk", Verdict.OK, found)
    return Finding("disk", Verdict.FAILURE, found, "make room, lower checkpoint.keep, or set output=DIR")


def _num_kept(plan: RunPlan) -> int:
    """Checkpoints that stand there at the end: the newest, the best one, and those that stay for good."""
    config = plan.config.checkpoint
    every = config.keep_every_epochs
    num_milestones = 0 if every is None else int(plan.epoch(plan.total_samples) / every)
    return config.keep + (plan.config.validation is not None) + num_milestones


def _link(plan: RunPlan, learner: Learner, device: torch.device) -> Finding:
    """The time that a step's exchange takes by itself, beside that of the backbone's work."""
    training, num_ranks = plan.config.training, dist.world_size()
    parameters = [parameter for parameter in learner.backend.model.parameters() if parameter.requires_grad]
    gradient_bytes = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    num_micro_batches = -(-training.global_batch // (training.local_batch * num_ranks))
    # a reduction sends each byte around twice; of the embeddings' two exchanges each does so once
    embedding_bytes = 4 * num_micro_batches * training.local_batch * num_ranks * plan.config.backbone.embedding_dim
    needed_bytes = gradient_bytes + embedding_bytes
    s_per_byte = max(dist.all_gather_objects(reduction_s_per_byte(device)))
    exchange_s = needed_bytes * s_per_byte
    work_s = max(dist.all_gather_objects(num_micro_batches * _micro_batch_s(plan, learner, device)))
    sent = 2 * (num_ranks - 1) / num_ranks
    found = (
        f"{_size(sent / s_per_byte)}/s a rank; a step sends {_size(sent * needed_bytes)} in {exchange_s:.3f} s beside "
        f"{work_s:.3f} s of the backbone's work"
    )
    if exchange_s <= _MOST_COMMUNICATION * work_s:
        return Finding("link", Verdict.OK, found)
    remedy = "check NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME; a larger training.global_batch sends less a photo"
    return Finding("link", Verdict.WARNING, found, remedy)


def _neighbours(device: torch.device) -> Finding:
    rates = dist.all_gather_objects(neighbour_bytes_per_s(device))
    slowest, median = min(rates), sorted(rates)[len(rates) // 2]
    to = rates.index(slowest)
    found = f"slowest {_size(slowest)}/s, rank {(to - 1) % len(rates)} to rank {to}; median {_size(median)}/s"
    if slowest * _SLOW_LINK >= median:
        return Finding("neighbours", Verdict.OK, found)
    return Finding("neighbours", Verdict.WARNING, found, "look at the network between these two")


def _micro_batch_s(plan: RunPlan, learner: Learner, device: torch.device) -> float:
    """Time of the backbone's forward and backward pass over a micro-batch, without an exchange."""
    shape = (plan.config.training.local_batch, plan.crop_px, plan.crop_px, 3)
    images = torch.zeros(shape, dtype=torch.uint8, device=device).permute(0, 3, 1, 2)
    best = float("inf")
    for _ in range(_NUM_PASSES):
        began = time.perf_counter()
        with learner.backend.accumulate(is_last=False):
            embeddings = learner.backend.forward(images)
            learner.backend.backward(embeddings, torch.zeros_like(embeddings))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    learner.forget_step()
    return best


def _by_value(values: Iterable[str]) -> dict[str, list[int]]:
    ranks: dict[str, list[int]] = {}
    for rank, value in enumerate(values):
        ranks.setdefault(value, []).append(rank)
    return ranks


def _name(ranks: Sequence[int]) -> str:
    """Ranks as a person would say them, the first few of many."""
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    shown = ", ".join(map(str, ranks[:8]))
    return f"ranks {shown}" + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")


def _count(num_ranks: int) -> str:
    return f"{num_ranks} rank{'s' if num_ranks > 1 else ''}"


def _size(num_bytes: float) -> str:
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:,.1f} {unit}"
    return f"{num_bytes / 2**10:,.1f} KiB"
