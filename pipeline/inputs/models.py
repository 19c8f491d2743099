"""Models that an evaluation can measure."""

from __future__ import annotations

from pathlib import Path

import torch

from pipeline.checkpoint import Weights, load_backbone
from pipeline.data.dataset_format import DatasetInfo
from pipeline.evaluate.embed import Embedder
from pipeline.evaluate.recogniser import Recogniser
from pipeline.evaluate.result import Model
from pipeline.model.backbones.cost import count_multiply_adds


def open_run(checkpoint: Path, device: torch.device, weights: Weights | None = None) -> Recogniser:
    """Load the model of a run directory or of one checkpoint.

    Args:
        checkpoint: see `pipeline.checkpoint.find_checkpoint`.
        device: where it runs.
        weights: the moving average or the raw ones; None: the average where there is one.

    Raises:
        UserError: as `pipeline.checkpoint.load_backbone`.
    """
    loaded = load_backbone(checkpoint, device, weights)
    return Recogniser(
        embedder=Embedder(loaded.module, loaded.crop_px, device, str(checkpoint)),
        description=Model(
            checkpoint=str(checkpoint),
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
