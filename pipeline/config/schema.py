"""The configuration of a training run: one frozen, typed tree. `kind:` selects the member of a union.

Unknown keys are refused. Every field's docstring is what `launch/train.py --describe` prints.
This module imports no torch, so that a configuration can be checked in a fraction of a second.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config.augment import Augmentation, Flip
from pipeline.config.cache import CacheConfig
from pipeline.config.decoder import CpuDecoder, DaliDecoder
from pipeline.config.heads import HeadConfig, MarginSoftmaxConfig
from pipeline.config.initial import InitConfig
from pipeline.config.location import DataLocation
from pipeline.config.mining import MiningConfig
from pipeline.config.optim import EmaConfig, FreezeRule, OptimConfig, PolynomialSchedule, ScheduleConfig, ThawConfig
from pipeline.config.order import OrderConfig, PlainOrderConfig
from pipeline.config.section import Section


class DataConfig(Section):
    """Where samples come from and how they are read."""

    path: DataLocation
    """Data set written by `preprocess shard`: its directory, or a URL (`https://`, `s3://`, `gs://`)."""
    cache: CacheConfig | None = None
    """Local copies of what is read from a remote data set; null for none."""
    split: str = "train"
    """Which split to train on."""
    order: OrderConfig = PlainOrderConfig()
    """Which samples a batch has."""
    decoder: Annotated[CpuDecoder | DaliDecoder, Field(discriminator="kind")] = CpuDecoder()
    """Who decodes the JPEGs."""
    augment: tuple[Augmentation, ...] = (Flip(),)
    """Operations on the crops, in the order in which they are applied."""
    num_threads: int = Field(2, ge=1)
    """Reading and decoding threads of each rank."""
    prefetch_steps: int = Field(2, ge=1)
    """Steps that are read ahead of the one in training."""
    max_bad_share: float = Field(0.001, ge=0, le=1)
    """Training stops when more than this share of the samples read so far was unreadable (never before 10 were)."""


class IResNetConfig(Section):
    """Residual network of ArcFace (Deng et al. 2019, arXiv:1801.07698, section 3.2.2): BN-Conv-BN-PReLU-Conv-BN."""

    kind: Literal["iresnet"] = "iresnet"
    depth: Literal[18, 34, 50, 100] = 50
    """Number of layers."""
    width: float = Field(1.0, gt=0)
    """Factor on all channel counts; 0.25 trains on a laptop."""
    embedding_dim: int = Field(512, ge=8)
    """D, the length of an embedding."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout before the embedding layer; masks are drawn by stream position, not by rank."""


class MobileFaceNetConfig(Section):
    """MobileFaceNet (Chen et al. 2018, arXiv:1804.07573)."""

    kind: Literal["mobilefacenet"] = "mobilefacenet"
    width: float = Field(1.0, gt=0)
    """Factor on all channel counts."""
    embedding_dim: int = Field(512, ge=8)
    """D, the length of an embedding."""


class TorchvisionConfig(Section):
    """Any torchvision classifier, its last layer replaced by a linear embedding."""

    kind: Literal["torchvision"] = "torchvision"
    name: str = "resnet18"
    """Name in `torchvision.models`, for example resnet50, convnext_tiny or vit_b_16."""
    embedding_dim: int = Field(512, ge=8)
    """D, the length of an embedding."""


BackboneConfig = Annotated[IResNetConfig | MobileFaceNetConfig | TorchvisionConfig, Field(discriminator="kind")]


class TrainingConfig(Section):
    """How much, in which portions and in which precision."""

    epochs: float = Field(gt=0)
    """Passes over the split; rounded to whole global batches, at least one. Slots that go to mined photos come on
    top."""
    global_batch: int = Field(ge=1)
    """Samples of an optimizer step over all ranks: what the science depends on."""
    local_batch: int = Field(ge=2)
    """Samples of a micro-batch: what the memory allows, and the group of batch norm, hence two at least. Divides
    `global_batch`."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the backbone's products; the head computes in fp32 whatever stands here."""

    @model_validator(mode="after")
    def _batches_divide(self) -> TrainingConfig:
        if self.global_batch % self.local_batch:
            raise ValueError(f"global_batch {self.global_batch} is not a multiple of local_batch {self.local_batch}")
        return self


class CheckpointConfig(Section):
    """When to save and what to keep."""

    every_epochs: float = Field(1.0, gt=0)
    """Distance between checkpoints; one more is written at the end and at SIGTERM."""
    keep: int = Field(2, ge=1)
    """How many of the newest stay."""


class MonitorConfig(Section):
    """What a run writes about itself."""

    every_steps: int = Field(10, ge=1)
    """Distance between two lines of `metrics.jsonl`."""
    tensorboard: bool = True
    """Write TensorBoard events beside it."""


class EngineConfig(Section):
    """What replicates the backbone."""

    kind: Literal["ddp"] = "ddp"


class Config(Section):
    """A training run."""

    output: Path
    """Directory of the run: configuration, metrics and checkpoints. A run that stands there is resumed."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Of the order, the augmentation, the initial weights and all other draws."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to compute; a missing GPU is an error."""
    data: DataConfig
    """Where samples come from."""
    backbone: BackboneConfig = IResNetConfig()
    """The network that embeds a crop."""
    init_from: InitConfig | None = None
    """Weights of an earlier model to begin from; None to begin anew."""
    head: HeadConfig = MarginSoftmaxConfig()
    """The loss over embeddings."""
    optim: OptimConfig = OptimConfig()
    """Optimizers."""
    schedule: Annotated[ScheduleConfig, Field(discriminator="kind")] = PolynomialSchedule()
    """Learning rate over samples consumed, as a factor on both optimizers' rates."""
    ema: EmaConfig | None = None
    """Average the backbone's weights; None for no."""
    freeze: tuple[FreezeRule, ...] = ()
    """Parameters of the backbone that rest, for a while or for the whole run."""
    thaw: ThawConfig | None = None
    """Freeze stages of the backbone and let them go one after another; None for no."""
    training: TrainingConfig
    """How much and in which portions."""
    mining: MiningConfig | None = None
    """Give part of each batch to hard examples found ahead; None for no."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When to save."""
    monitor: MonitorConfig = MonitorConfig()
    """What to write down."""
    engine: EngineConfig = EngineConfig()
    """What replicates the backbone."""

    @model_validator(mode="after")
    def _mining_has_plain_order(self) -> Config:
        if self.mining is not None and self.data.order != PlainOrderConfig():
            raise ValueError("mining fills up batches of the plain order: leave data.order as it is, or mining out")
        return self

    @model_validator(mode="after")
    def _a_group_fits(self) -> Config:
        if self.mining is not None and not self.mining.mined_slots(self.training.global_batch):
            raise ValueError(
                f"mining.share {self.mining.share:g} of global_batch {self.training.global_batch} holds no group of "
                f"{self.mining.group_size} slots"
            )
        return self
