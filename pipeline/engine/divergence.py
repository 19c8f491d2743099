"""When numbers go wrong: who is to blame, a dump to do the step again from, and losses that jump."""

from __future__ import annotations

import json
import math
import shutil
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline import dist
from pipeline.checkpoint import CheckpointInfo
from pipeline.checkpoint_writer import save
from pipeline.config.divergence import DivergenceConfig
from pipeline.data.loader import MicroBatch, StepBatch
from pipeline.data.manifest import SplitIndex

DUMPS = "non_finite"
_MOST_KEYS = 5


@dataclass(frozen=True)
class Culprit:
    """A micro-batch whose embeddings were not finite."""

    rank: int
    position: int
    """Stream position of its first slot."""
    keys: list[str]
    """Of the samples whose embeddings were not finite; with batch norm mostly all of the micro-batch."""

    def __str__(self) -> str:
        more = f" and {len(self.keys) - _MOST_KEYS} more" if len(self.keys) > _MOST_KEYS else ""
        named = ", ".join(self.keys[:_MOST_KEYS])
        return f"rank {self.rank}, stream position {self.position}, samples {named}{more}"


def find_culprits(batch: StepBatch, finite: Sequence[Tensor], split: SplitIndex) -> list[Culprit]:
    """The micro-batches of all ranks with embeddings that were not finite. Collective on all ranks.

    Args:
        batch: this rank's.
        finite: of the micro-batches that were embedded, [B] bool.
        split: where the keys of samples stand.
    """
    own = []
    for micro, is_finite in zip(batch.micro_batches, finite, strict=False):
        wrong = (~is_finite & micro.valid).nonzero()[:, 0]
        if len(wrong):
            rows = np.flatnonzero(np.isin(split.sample_id, micro.sample_ids[wrong].cpu().numpy()))
            own.append(Culprit(dist.rank(), micro.position, split.keys(rows)))
    return [culprit for culprits in dist.all_gather_objects(own) for culprit in culprits]


def non_finite_gradients(modules: Iterable[nn.Module]) -> list[str]:
    """Names of the parameters whose gradient is not finite on this rank."""
    return [
        name
        for module in modules
        for name, parameter in module.named_parameters()
        if parameter.grad is not None and not bool(parameter.grad.isfinite().all())
    ]


def dump_step(
    output: Path,
    tensors: dict[str, Tensor],
    info: CheckpointInfo,
    batch: StepBatch,
    report: dict[str, object],
    culprits: Sequence[Culprit],
    mined_list: Path | None,
) -> Path:
    """Leave what is needed to do a step again. Collective on all ranks.

    The dump is laid out as a run: `launch/train.py --config OUTPUT/config.yaml output=DUMP` does the step again, on as
    many ranks bit for bit.

    Args:
        output: the run's directory.
        tensors: of a checkpoint, as they were before the step.
        info: of that checkpoint.
        batch: this rank's part of the batch; its micro-batches stand in `batch-rank-R.safetensors`.
        report: for `report.json`.
        culprits: of all ranks.
        mined_list: a file that the order of samples needs, relative to `output`.

    Returns:
        The dump's directory.
    """
    folder = output / DUMPS / f"step-{info.step + 1:08d}"
    save(folder / "checkpoints", tensors, info, keep=1)
    save_file(_as_tensors(batch.micro_batches), folder / f"batch-rank-{dist.rank()}.safetensors")
    if dist.rank() == 0:
        content = report | {"step": info.step + 1, "samples": info.samples, "culprits": [asdict(c) for c in culprits]}
        (folder / "report.json").write_text(json.dumps(content, indent=1))
        if mined_list is not None:
            (folder / mined_list).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(output / mined_list, folder / mined_list)
    dist.barrier()
    return folder


def _as_tensors(micros: Sequence[MicroBatch]) -> dict[str, Tensor]:
    return {
        f"{micro.position}/{name}": getattr(micro, name).cpu().contiguous()
        for micro in micros
        if not micro.is_filler
        for name in ("images", "labels", "sample_ids", "valid")
    }


class SpikeDetector:
    """Tells a loss that jumps out of the last ones.

    Args:
        config: see there.
        losses: of the steps before, of the checkpoint that the run goes on from.
    """

    def __init__(self, config: DivergenceConfig, losses: Sequence[float]) -> None:
        self._factor = config.spike_factor
        self._losses = deque(losses, maxlen=config.spike_window)

    @property
    def losses(self) -> list[float]:
        """Of the last steps, for a checkpoint; empty where nobody looks."""
        return list(self._losses)

    def usual(self) -> float:
        """The median of the last steps' losses."""
        return median(self._losses)

    def is_spike(self, loss: float) -> bool:
        """Look at a step's loss, and remember it unless it is a spike."""
        if self._factor is None:
            return False
        is_full = len(self._losses) == self._losses.maxlen
        if is_full and loss > self._factor * self.usual():
            return True
        if math.isfinite(loss):
            self._losses.append(loss)
        return False

    def forget(self) -> None:
        """Begin anew, after weights were taken back."""
        self._losses.clear()
