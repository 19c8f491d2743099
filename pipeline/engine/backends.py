"""The backbone that a configuration asks for, in the hands of the engine that it asks for."""

from __future__ import annotations

import torch
from torch import nn

from pipeline.config.engine import DeepSpeedConfig
from pipeline.config.schema import Config, TrainingConfig
from pipeline.engine.backend import Backend
from pipeline.engine.ddp import DDPBackend
from pipeline.engine.deepspeed import DeepSpeedBackend
from pipeline.engine.network import recompute_blocks
from pipeline.engine.synchronised_norm import synchronise


def prepare_for_training(model: nn.Module, training: TrainingConfig) -> None:
    """Make a backbone compute in training as configured, in place. What it computes in eval mode stays.

    Raises:
        UserError: its activations are to be recomputed, and it has no blocks.
    """
    if training.batch_norm == "synchronised":
        synchronise(model)
    if training.activation_checkpointing:
        recompute_blocks(model)


def build_backend(config: Config, model: nn.Module, device: torch.device) -> Backend:
    """Hand a backbone to the configured engine. Collective on all ranks."""
    training, optimizer = config.training, config.optim.backbone
    if isinstance(config.engine, DeepSpeedConfig):
        return DeepSpeedBackend(model, optimizer, training.precision, device, config.engine, training.compile)
    return DDPBackend(model, optimizer, training.precision, device, training.compile)
