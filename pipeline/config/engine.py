"""What replicates the backbone over ranks, and in which arithmetic it computes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.section import Section

Precision = Literal["fp32", "tf32", "bf16", "fp16"]
BatchNormGroup = Literal["micro_batch", "synchronised"]

ELEMENTWISE_OPTIMIZERS = ("sgd", "adam", "adamw")
"""Kinds whose update of an element depends on nothing but that element's history: they may see parameters cut up."""


class DDPConfig(Section):
    """PyTorch's DistributedDataParallel: each rank holds the whole backbone, its gradient and its optimizer's state."""

    kind: Literal["ddp"] = "ddp"


class DeepSpeedConfig(Section):
    """DeepSpeed with ZeRO (Rajbhandari et al. 2020, arXiv:1910.02054) round the backbone."""

    kind: Literal["deepspeed"] = "deepspeed"
    stage: Literal[0, 1, 2] = 1
    """What the ranks divide among them: 0 nothing, 1 the optimizer's state, 2 the gradient too. There is no 3: it takes
    the parameters apart that checkpoints, averages and validation read whole."""


EngineConfig = Annotated[DDPConfig | DeepSpeedConfig, Field(discriminator="kind")]


def check_engine(
    engine: DDPConfig | DeepSpeedConfig,
    *,
    device: str,
    precision: Precision,
    batch_norm: BatchNormGroup,
    compiles: bool,
    optimizer: str,
    freezes: bool,
) -> None:
    """Refuse what cannot be had together.

    Raises:
        ValueError: it says what and why.
    """
    if precision == "tf32" and device != "cuda":
        raise ValueError("training.precision: tf32 is a format of NVIDIA GPUs: set device=cuda, or fp32")
    if compiles and batch_norm == "synchronised":
        raise ValueError(
            "training.compile cannot compile what waits for other ranks: set training.batch_norm=micro_batch"
        )
    if isinstance(engine, DeepSpeedConfig) and freezes:
        raise ValueError("freeze and thaw need engine.kind: ddp, for DeepSpeed lays out once what it trains")
    if isinstance(engine, DeepSpeedConfig) and engine.stage > 0 and optimizer not in ELEMENTWISE_OPTIMIZERS:
        raise ValueError(
            f"optim.backbone.kind: {optimizer} needs whole tensors, which engine.stage {engine.stage} cuts up: "
            f"set engine.stage=0, or one of {', '.join(ELEMENTWISE_OPTIMIZERS)}"
        )
