"""Checkpoints that do not depend on the number of ranks: what they hold, where they stand, and how they are read.

A checkpoint is a directory `step-00001234/` with the tensors, written by `torch.distributed.checkpoint`, and
`checkpoint.json`, which says what they belong to. `pipeline.checkpoint_writer` writes it, whole or not at all; then the
file `latest` names it. Class centres and their optimizer state are DTensors cut by rows, so that a checkpoint of N
ranks loads on M.

The tensors' index file is a pickle: load only checkpoints you trust.

torch's parts for distributed tensors are imported where tensors are read: they bring a computer algebra system along,
and a run is checked without them.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from pipeline import dist
from pipeline.config.errors import UserError
from pipeline.config.load import validate_config
from pipeline.data.balanced_order import BalancedPart
from pipeline.model.backbones import FaceModel, build_backbone

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
DESCRIPTION = "checkpoint.json"
LATEST = "latest"
BEST = "best"
BACKBONE_PREFIX = "backbone/"
EMA_PREFIX = "ema/"
HEAD_PREFIX = "head/"

Weights = Literal["ema", "raw"]
"""Which of a backbone's weights: their moving average, or those that the optimizer moved."""


class MinedListInfo(BaseModel):
    """The mined list that the order of samples depends on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    """Path in the run's directory."""
    sha256: str
    """Of the file."""


class MixedSetInfo(BaseModel):
    """One data set of a mix."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    split: str
    digest: str


class ValidationState(BaseModel):
    """What validation has found so far."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    best_score: float | None = None
    best_step: int = 0
    num_since_best: int = 0
    """Validations after the best one."""


class CheckpointInfo(BaseModel):
    """The content of `checkpoint.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = FORMAT_VERSION
    step: int
    """Optimizer updates done."""
    samples: int
    """Samples consumed: the position in the stream, and with `mined_list` all that the order needs to go on."""
    num_bad_samples: int
    """Of these, how many could not be read."""
    world_size: int
    """Ranks that wrote it; any number may read it."""
    num_classes: int
    label_map_sha256: str
    """Hash of the identities in the order of their labels."""
    split: str
    config: dict[str, Any]
    """The resolved configuration."""
    dataset: dict[str, Any]
    """`dataset.json` of the training data; of a mix, that of its first set."""
    versions: dict[str, str]
    mixed: list[MixedSetInfo] = []
    """The sets of a mix, in order; empty where there is none."""
    order_parts: list[BalancedPart] = []
    """How an identity-balanced order was cut so far."""
    validation: ValidationState | None = None
    """None without validation."""
    losses: list[float] = []
    """Of the last steps, where spikes are looked for."""
    is_milestone: bool = False
    """Whether it stays however many come after it."""
    mined_list: MinedListInfo | None = None
    """The list in use; None without mining, before the first round, and where the next step begins with a round."""

    @property
    def trained_on(self) -> list[tuple[str, str]]:
        """Split and digest of each data set."""
        return [(one.split, one.digest) for one in self.mixed] or [(self.split, self.dataset["digest"])]


@dataclass(frozen=True)
class LoadedBackbone:
    """A trained backbone, ready to embed."""

    module: FaceModel
    """In eval mode: uint8 [B, 3, H, W] RGB to float32 [B, D], normalisation inside."""
    crop_px: int
    embedding_dim: int
    step: int
    num_samples: int
    config: dict[str, Any]
    dataset: dict[str, Any]
    """See `CheckpointInfo`."""
    trained_on: list[tuple[str, str]]
    """Split and digest of each data set."""
    weights: Weights = "raw"
    """Which were loaded."""


def latest_checkpoint(directory: Path) -> Path | None:
    """The checkpoint that `latest` names, or None when there is none.

    Raises:
        UserError: `latest` names a checkpoint that is not there.
    """
    return _named_by(directory / LATEST)


def best_checkpoint(directory: Path) -> Path | None:
    """The checkpoint with the best score in validation, or None where there is none.

    Raises:
        UserError: `best` names a checkpoint that is not there.
    """
    return _named_by(directory / BEST)


def _named_by(pointer: Path) -> Path | None:
    if not pointer.is_file():
        return None
    path = pointer.parent / pointer.read_text().strip()
    if not (path / DESCRIPTION).is_file():
        others = ", ".join(sorted(p.name for p in pointer.parent.glob("step-*"))) or "none"
        raise UserError(pointer, f"names {path.name!r}, which is not there", f"one of: {others}", "mend or remove it")
    return path


def all_checkpoints(directory: Path) -> list[Path]:
    """The finished checkpoints of a directory, by step."""
    return sorted(path.parent for path in directory.glob(f"step-*/{DESCRIPTION}") if path.parent.suffix != ".tmp")


def find_checkpoint(path: Path) -> Path:
    """The newest checkpoint of a run directory or a `checkpoints` directory, or what `checkpoints/best` names; one
    checkpoint is given back as it is.

    Raises:
        UserError: none there.
    """
    if (path / DESCRIPTION).is_file():
        return path
    if path.name in (LATEST, BEST) and (named := _named_by(path)) is not None:
        return named
    for directory in (path, path / "checkpoints"):
        if directory.is_dir() and (found := latest_checkpoint(directory)) is not None:
            return found
    found_text = "no checkpoint in it" if path.is_dir() else "no such directory"
    raise UserError(path, found_text, "a run directory or a checkpoint `step-N`", "train one with launch/train.py")


def read_info(path: Path) -> CheckpointInfo:
    """Read `checkpoint.json`.

    Raises:
        UserError: missing, damaged, or of another format version.
    """
    file = path / DESCRIPTION
    try:
        content = json.loads(file.read_text())
        if content.get("format_version") != FORMAT_VERSION:
            raise UserError(file, f"format version {content.get('format_version')}", f"version {FORMAT_VERSION}")
        return CheckpointInfo.model_validate(content)
    except (OSError, ValueError, AttributeError, ValidationError) as error:
        raise UserError(file, f"not a checkpoint ({str(error).splitlines()[0]})") from error


def shard_rows(local: Tensor, num_rows: int, mesh: DeviceMesh | None) -> Tensor:
    """Present a rank's rows [rows, ...] as their part of a global [num_rows, ...] tensor; shares memory with `local`.

    Rows must be cut as `dist.partition` cuts them, which is how DTensor does: other cuts save cleanly and lose rows.
    """
    if mesh is None:
        return local
    from torch.distributed.tensor import DTensor, Shard

    shape = torch.Size((num_rows, *local.shape[1:]))
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(local, mesh, [Shard(0)], run_check=False, shape=shape, stride=stride)


def local_rows(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor of a checkpoint: all of it, or its rows of one that `shard_rows` presents."""
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def rank_mesh(device: torch.device) -> DeviceMesh | None:
    """A one-dimensional mesh over all ranks, or None in a single process. Collective on all ranks."""
    if dist.world_size() == 1:
        return None
    return init_device_mesh(device.type, (dist.world_size(),))


def load_into(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fill `tensors` in place from a checkpoint, each rank its own part. Collective on all ranks.

    Raises:
        UserError: a tensor is missing or has another shape: the checkpoint belongs to another model.
    """
    metadata = _read_metadata(path)
    for name, tensor in tensors.items():
        stored = metadata.get(name)
        if stored is None:
            raise UserError(path, f"holds no {name!r}", remedy="it was written by another model or optimizer")
        size = getattr(stored, "size", None)
        if size is not None and tuple(size) != tuple(tensor.shape):
            raise UserError(path, f"{name!r} has shape {tuple(size)}", f"{tuple(tensor.shape)}")
    _read_into(path, dict(tensors), no_dist=dist.world_size() == 1)


def stored_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of a checkpoint, whole."""
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    metadata = _read_metadata(path)
    return {name: tuple(stored.size) for name, stored in metadata.items() if isinstance(stored, TensorStorageMetadata)}


def read_tensors(path: Path, names: Collection[str] | None = None) -> dict[str, Tensor]:
    """Tensors of a checkpoint, all of them or the named ones, whole, on the CPU. Each process's own affair."""
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    metadata = _read_metadata(path)
    tensors = {
        name: torch.empty(stored.size, dtype=stored.properties.dtype)
        for name, stored in metadata.items()
        if isinstance(stored, TensorStorageMetadata) and (names is None or name in names)
    }
    _read_into(path, tensors, no_dist=True)
    return tensors


def has_ema(path: Path) -> bool:
    """Whether a checkpoint holds a moving average of the backbone's weights."""
    return any(name.startswith(EMA_PREFIX) for name in _read_metadata(path))


def load_backbone(path: Path, device: torch.device, weights: Weights | None = None) -> LoadedBackbone:
    """Load a backbone for embedding from a run directory, a `checkpoints` directory or one checkpoint.

    A single process's affair: not collective, whatever the number of ranks that wrote the checkpoint.

    Args:
        path: see above.
        device: where the backbone goes.
        weights: which; None: the average where the checkpoint has one.

    Raises:
        UserError: no such checkpoint, a damaged one, or no average in it where one was asked for.
    """
    checkpoint = find_checkpoint(path)
    info = read_info(checkpoint)
    config = validate_config(info.config, where=str(checkpoint / DESCRIPTION))
    crop_px = int(info.dataset["crop"]["size_px"])
    model = build_backbone(config.backbone, crop_px, config.seed)
    is_averaged = has_ema(checkpoint)
    if weights == "ema" and not is_averaged:
        raise UserError(checkpoint, "holds no average of the weights", "a run with an `ema` section", "ask for raw")
    weights = weights or ("ema" if is_averaged else "raw")
    prefix = EMA_PREFIX if weights == "ema" else BACKBONE_PREFIX
    tensors = {prefix + name: value for name, value in model.state_dict().items()}
    _read_into(checkpoint, tensors, no_dist=True)
    model.load_state_dict({name.removeprefix(prefix): value for name, value in tensors.items()})
    return LoadedBackbone(
        module=model.to(device).eval(),
        crop_px=crop_px,
        embedding_dim=config.backbone.embedding_dim,
        step=info.step,
        num_samples=info.samples,
        config=info.config,
        dataset=info.dataset,
        trained_on=info.trained_on,
        weights=weights,
    )


def versions() -> dict[str, str]:
    """Versions that matter to who wants to repeat a run."""
    return {"torch": torch.__version__}


def _read_metadata(path: Path) -> dict[str, Any]:
    """What a checkpoint holds, by name.

    Raises:
        UserError: the index is missing or damaged.
    """
    import torch.distributed.checkpoint as dcp

    try:
        return dcp.FileSystemReader(path).read_metadata().state_dict_metadata
    except Exception as error:  # whatever unpickling a damaged file may raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(path, f"damaged ({reason})", "a whole checkpoint", "point `latest` at another one") from error


def _read_into(path: Path, tensors: dict[str, Tensor], no_dist: bool) -> None:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        silence_dcp()
        dcp.load(tensors, storage_reader=dcp.FileSystemReader(path), no_dist=no_dist)
    except (CheckpointException, OSError, RuntimeError, EOFError) as error:
        raise UserError(
            path, "its tensors cannot be read", "a whole checkpoint", "point `latest` at another one"
        ) from (error)


def silence_dcp() -> None:
    """Ignore what DCP warns of in every process of ours: that there is no group, and a storage class of its own.

    For good and not for a while: warning filters belong to the whole process, and a thread may be writing.
    """
    for message in (".*torch.distributed is .*", ".*TypedStorage is deprecated.*"):
        warnings.filterwarnings("ignore", message=message, category=UserWarning)
