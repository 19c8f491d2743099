"""Models that an evaluation can measure, opened by what they are."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from pipeline.checkpoint import DESCRIPTION, LoadedBackbone, Weights, find_checkpoint, load_backbone
from pipeline.config.errors import UserError
from pipeline.data.dataset_format import DatasetInfo
from pipeline.evaluate.embed import Embedder
from pipeline.evaluate.recogniser import Recogniser
from pipeline.evaluate.result import Model
from pipeline.inputs.declared import OPTION, parse_declared
from pipeline.inputs.embedding_file import SUFFIXES as EMBEDDING_SUFFIXES
from pipeline.inputs.embedding_file import open_embeddings
from pipeline.inputs.onnx_model import open_onnx
from pipeline.inputs.python_model import NAME as CALLABLE
from pipeline.inputs.python_model import open_callable
from pipeline.model.backbones.cost import count_multiply_adds

ONNX_SUFFIX = ".onnx"
_KINDS = "a run directory, a checkpoint, FILE.onnx, module:function, or embeddings (FILE.parquet, FILE.npz)"


def open_model(
    name: str, device: torch.device, weights: Weights | None = None, declared: str | None = None
) -> Recogniser:
    """Open a model of any kind.

    Args:
        name: a run directory or checkpoint, `FILE.onnx`, `module:function`, or a file of embeddings.
        device: where it runs.
        weights: see `open_run`; for runs alone.
        declared: what it takes, see `pipeline.inputs.declared`; for ONNX files and callables alone.

    Raises:
        UserError: no such model, one that cannot be used, or an option that does not go with its kind.
    """
    path = Path(name)
    is_onnx = path.suffix == ONNX_SUFFIX and not path.is_dir()
    is_callable = not path.exists() and CALLABLE.fullmatch(name) is not None
    is_stored = path.suffix in EMBEDDING_SUFFIXES and not path.is_dir()
    is_run = not (is_onnx or is_callable or is_stored)
    if weights is not None and not is_run:
        raise UserError("--model-weights", f"given with {name}", "a run", "leave it out")
    if declared is not None and not (is_onnx or is_callable):
        raise UserError(OPTION, f"given with {name}", "an ONNX file or module:function", f"leave {OPTION} out")
    if is_onnx:
        return open_onnx(path, parse_declared(declared), device)
    if is_callable:
        return open_callable(name, parse_declared(declared), device)
    if is_stored:
        return open_embeddings(path)
    if path.is_file():
        raise UserError(path, "a file of another kind", _KINDS)
    return open_run(path, device, weights)


def open_run(checkpoint: Path, device: torch.device, weights: Weights | None = None) -> Recogniser:
    """Load the model of a run directory or of one checkpoint.

    Args:
        checkpoint: see `pipeline.checkpoint.find_checkpoint`.
        device: where it runs.
        weights: the moving average or the raw ones; None: the average where there is one.

    Raises:
        UserError: as `pipeline.checkpoint.load_backbone`.
    """
    found = find_checkpoint(checkpoint)  # once: a run that is still training may write the next one meanwhile
    return recognise(load_backbone(found, device, weights), checkpoint, found, device)


def recognise(loaded: LoadedBackbone, checkpoint: Path, folder: Path, device: torch.device) -> Recogniser:
    """A run's model as evaluation sees it.

    Args:
        loaded: the model, on `device`.
        checkpoint: what its user calls it: a run directory, or one checkpoint.
        folder: the checkpoint it was loaded from.
        device: where it runs.
    """
    return Recogniser(
        embedder=Embedder(loaded.module, loaded.crop_px, device, str(checkpoint)),
        description=Model(
            checkpoint=str(checkpoint),
            sha256=hashlib.sha256((folder / DESCRIPTION).read_bytes()).hexdigest(),
            step=loaded.step,
            num_samples=loaded.num_samples,
            crop_px=loaded.crop_px,
            embedding_dim=loaded.embedding_dim,
            num_parameters=sum(parameter.numel() for parameter in loaded.module.parameters()),
            multiply_adds=count_multiply_adds(
                loaded.module, torch.zeros(1, 3, loaded.crop_px, loaded.crop_px, dtype=torch.uint8, device=device)
            ),
            config=loaded.config,
            dataset=loaded.dataset,
            weights=loaded.weights,
        ),
        trained=DatasetInfo.model_validate(loaded.dataset),
        trained_on=loaded.trained_on,
        run_directory=_run_directory(checkpoint),
    )


def _run_directory(checkpoint: Path) -> Path:
    """The run that a checkpoint belongs to: it holds `checkpoints/step-N`."""
    for path in (checkpoint, *checkpoint.absolute().parents[:2]):
        if (path / "checkpoints").is_dir():
            return path
    return checkpoint
