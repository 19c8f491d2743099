"""What a run will need of a rank, in memory and time, measured on a few class centres and scaled to all of them.

The backbone's part does not depend on the number of classes: one micro-batch of it is run as it is. The head's part
grows in proportion to a rank's class centres: a few ten thousand of them are run, in a process of its own
(`pipeline.engine.measure_step`), and what grows is scaled. docs/estimate.md has the reasoning and how far it holds.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from pipeline import dist
from pipeline.config.engine import DeepSpeedConfig
from pipeline.config.errors import UserError
from pipeline.config.schema import Config
from pipeline.engine.measure_link import seconds_per_byte
from pipeline.engine.measure_step import StepMeasurement, StepRequest
from pipeline.model.backbones.cost import BackboneCost, backbone_cost
from pipeline.model.head import build_head
from pipeline.model.huge_pages import MMAP_THRESHOLD_BYTES
from pipeline.model.partial_fc import KEEP_BYTES_CPU

USUAL_CROP_PX = 112
"""What is assumed where there is no data set."""
_MEASURED_ROWS = 32_768
_MEASURE_TIMEOUT_S = 1800


@dataclass(frozen=True)
class HeadShape:
    """How a head meets a step of a run: what it is called with on each rank."""

    num_rows: int
    """Class centres of the rank that has most."""
    num_queries: int
    """Embeddings in a call, those of all ranks."""
    num_calls: int
    """Calls in a step."""


@dataclass(frozen=True)
class Estimate:
    """Of one rank; bytes and seconds."""

    num_classes: int
    num_ranks: int
    crop_px: int
    shape: HeadShape
    num_micro_batches: int
    """Of a rank in a step."""
    backbone: BackboneCost
    """Counted, not measured."""
    memory: dict[str, int]
    """By what it is for; tensors only."""
    tensor_peak_bytes: int
    """All tensors that are there at once, at most."""
    resident_peak_bytes: int
    """Resident at most, above what the process holds without a model."""
    process_bytes: int
    """What the process holds without a model: Python and its libraries."""
    seconds: dict[str, float]
    """Of a step, by part."""
    processor_s: float
    """Of a step without communication: what the rank's threads work together."""

    @property
    def step_s(self) -> float:
        """One optimizer update."""
        return sum(self.seconds.values())


def estimate(config: Config, num_classes: int, num_ranks: int, crop_px: int) -> Estimate:
    """Measure and scale. Starts processes of its own; not collective.

    Args:
        config: the run's; its data set is not opened.
        num_classes: C, over all ranks.
        num_ranks: how many ranks train.
        crop_px: side of the crops.

    Raises:
        UserError: no CPU run, a head with a teacher, or a model that cannot be built.
    """
    if config.device != "cpu":
        raise UserError("device", config.device, "cpu: estimates are measured on this machine", "add device=cpu")
    if isinstance(config.engine, DeepSpeedConfig) and config.engine.stage:
        raise UserError(
            "engine.stage",
            f"estimates do not divide what ZeRO {config.engine.stage} divides among ranks",
            remedy="with engine.kind=ddp they hold for what it does not divide",
        )
    backbone = backbone_cost(config.backbone, crop_px)
    training = config.training
    num_micro_batches = -(-training.global_batch // (training.local_batch * num_ranks))
    whole = num_micro_batches > 1 and build_head(config.head, 2, config.backbone.embedding_dim, 0).needs_whole_batch
    shape = HeadShape(
        num_rows=dist.partition(num_classes, 0, num_ranks)[1],
        num_queries=training.local_batch * num_ranks * (num_micro_batches if whole else 1),
        num_calls=1 if whole else num_micro_batches,
    )

    def measure(num_rows: int) -> StepMeasurement:
        return _run(
            StepRequest(
                config=_with_share(config.model_dump(mode="json"), num_rows / shape.num_rows),
                num_rows=num_rows,
                num_queries=shape.num_queries,
                crop_px=crop_px,
                holds_activations=not whole,
                accumulates=num_micro_batches > 1,
            )
        )

    # below the threshold a tensor would come from another place than the full-sized one
    row_bytes = 4 * config.backbone.embedding_dim
    most = max(_MEASURED_ROWS, 2 * MMAP_THRESHOLD_BYTES // row_bytes)
    if shape.num_rows <= most:
        # twice, because how the heap falls apart is a matter of luck
        large, small = measure(shape.num_rows), measure(shape.num_rows)
        factor, growth = 0.0, 1.0
    else:
        large, small = measure(most), measure(most * 5 // 8)
        factor, growth = (shape.num_rows - most) / (most - most * 5 // 8), shape.num_rows / most
    live = _scaled(large.live_bytes, small.live_bytes, factor)
    mapped = _scaled(large.mapped_bytes, small.mapped_bytes, factor)
    sizes = _scaled(large.tensor_bytes, small.tensor_bytes, factor)
    # the heap does not shrink: it stays as large as its greatest phase makes it, while mapped tensors come and go
    heap = max(value - mapped[phase] for phase, value in live.items())
    measured = (large, small)
    besides = sum(m.resident_bytes - m.greatest_heap_bytes - max(m.mapped_bytes.values()) for m in measured) // 2
    # DistributedDataParallel keeps its buckets, which are the gradients, between steps, and lays them out twice
    buckets = 2 * sizes["backbone_gradient"] if num_ranks > 1 else 0
    # float32 like the weights it averages, and there all the time
    average = 0 if config.ema is None else sizes["backbone"]
    return Estimate(
        num_classes=num_classes,
        num_ranks=num_ranks,
        crop_px=crop_px,
        shape=shape,
        num_micro_batches=num_micro_batches,
        backbone=backbone,
        memory={
            "class centres": sizes["head"],
            "their gradient": sizes["head_gradient"],
            "their optimizer state": sizes["head_optimizer"],
            "backbone": sizes["backbone"],
            "its gradient": sizes["backbone_gradient"],
            "its optimizer state": sizes["backbone_optimizer"],
            **({"the average of its weights": average} if average else {}),
            "activations of a micro-batch": large.activation_bytes,
            "the head's working memory": _scaled_number(large.head_working_bytes, small.head_working_bytes, factor),
        },
        tensor_peak_bytes=max(live.values()) + average,
        resident_peak_bytes=besides + heap + max(mapped.values()) + buckets + average,
        process_bytes=large.process_bytes,
        seconds=_by_part(shape, num_micro_batches, whole, large.seconds, growth)
        | {"communication": _communication_s(config, shape, num_ranks, sizes["backbone_gradient"])},
        processor_s=sum(_by_part(shape, num_micro_batches, whole, large.processor_seconds, growth).values()),
    )


def _by_part(
    shape: HeadShape, num_micro_batches: int, whole: bool, phases: dict[str, float], growth: float
) -> dict[str, float]:
    """Seconds of a step from those of its phases; `growth` is the factor on what is proportional to class centres."""
    forward = (2 if whole else 1) * phases["forward"]
    return {
        "backbone, forward and backward": num_micro_batches * (forward + phases["backward"]),
        "head, forward and backward": shape.num_calls * growth * phases["head"],
        "optimizers": phases["backbone_optimizer"] + growth * phases["head_optimizer"],
    }


def _communication_s(config: Config, shape: HeadShape, num_ranks: int, backbone_gradient_bytes: int) -> float:
    if num_ranks == 1:
        return 0.0
    # a ring sends each byte of a sum around twice, but for a rank's own part
    backbone = 2 * (num_ranks - 1) / num_ranks * backbone_gradient_bytes
    return seconds_per_byte() * (backbone + shape.num_calls * head_traffic_bytes(shape, config, num_ranks))


def head_traffic_bytes(shape: HeadShape, config: Config, num_ranks: int) -> float:
    """What a rank sends in a call of a head: embeddings gathered, their gradients scattered (docs/head.md)."""
    embeddings = 4 * shape.num_queries * config.backbone.embedding_dim
    return 2 * (num_ranks - 1) / num_ranks * embeddings


def describe(found: Estimate) -> str:
    """Lines for a terminal."""
    ranks = f"{found.num_ranks} rank{'s' if found.num_ranks > 1 else ''}"
    micro_batches = f"{found.num_micro_batches} micro-batch{'es' if found.num_micro_batches > 1 else ''}"
    lines = [
        f"{found.num_classes:,} classes on {ranks}, {found.crop_px} px: {found.shape.num_rows:,} class centres, "
        f"{micro_batches} a rank and step",
        f"backbone: {found.backbone.num_parameters:,} parameters; a photo takes "
        f"{found.backbone.multiply_adds / 1e9:.3f} G multiply-adds forward "
        f"and {found.backbone.activation_bytes / 2**20:,.2f} MiB of activations in fp32",
        "memory of a rank, MiB",
    ]
    lines += [f"  {name:<34}{size / 2**20:>12,.1f}" for name, size in found.memory.items()]
    lines += [
        f"  {'tensors at most':<34}{found.tensor_peak_bytes / 2**20:>12,.1f}",
        f"  {'peak, with allocator and libraries':<34}{found.resident_peak_bytes / 2**20:>12,.1f}",
        f"  {'Python and torch besides':<34}{found.process_bytes / 2**20:>12,.1f}",
        f"time of a step, s{'':<18}{found.step_s:>12,.3f}",
    ]
    lines += [f"  {name:<34}{value:>12,.3f}{value / found.step_s:>7.0%}" for name, value in found.seconds.items()]
    return "\n".join(lines)


def _with_share(tree: dict[str, Any], share: float) -> dict[str, Any]:
    """The configuration for a head with a share of the class centres, whose budgets are that share of the real ones.

    So the same part of its logits is kept for the backward pass, and what it costs stays proportional to class centres.
    """
    changed: dict[str, Any] = {
        key: _with_share(value, share) if isinstance(value, dict) else value for key, value in tree.items()
    }
    if changed.get("kind") == "margin_softmax":
        budget = KEEP_BYTES_CPU if changed["keep_bytes"] is None else changed["keep_bytes"]
        changed["keep_bytes"] = round(share * budget)
    return changed


def _run(request: StepRequest) -> StepMeasurement:
    command = [sys.executable, "-m", "pipeline.engine.measure_step"]
    result = subprocess.run(
        command,
        input=request.model_dump_json(),
        capture_output=True,
        text=True,
        timeout=_MEASURE_TIMEOUT_S,
        check=False,
    )
    try:
        answer = json.loads(result.stdout)
    except ValueError:
        reason = (result.stderr.strip().splitlines() or ["killed"])[-1]
        raise UserError(
            "--estimate", f"the measuring process ended without an answer ({reason})", "", "lower training.local_batch"
        ) from None
    if "error" in answer:
        raise UserError(*answer["error"])
    return StepMeasurement.model_validate(answer["measurement"])


def _scaled(large: dict[str, int], small: dict[str, int], factor: float) -> dict[str, int]:
    return {name: _scaled_number(value, small[name], factor) for name, value in large.items()}


def _scaled_number(large: int, small: int, factor: float) -> int:
    return round(large + factor * (large - small))
