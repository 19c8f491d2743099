"""The configuration of a training run: one frozen, typed tree. `kind:` selects the member of a union.

Unknown keys are refused. Every field's docstring is what `launch/train.py --describe` prints.
This module imports no torch, so that a configuration can be checked in a fraction of a second.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config.augment import Augmentation, Flip
from pipeline.config.backbones import BackboneConfig, IResNetConfig
from pipeline.config.cache import CacheConfig
from pipeline.config.decoder import CpuDecoder, DaliDecoder
from pipeline.config.divergence import DivergenceConfig
from pipeline.config.engine import BatchNormGroup, DDPConfig, EngineConfig, Precision, check_engine
from pipeline.config.heads import HeadConfig, MarginSoftmaxConfig
from pipeline.config.initial import InitConfig
from pipeline.config.location import DataLocation
from pipeline.config.mining import MiningConfig
from pipeline.config.mix import MixConfig
from pipeline.config.optim import EmaConfig, FreezeRule, OptimConfig, PolynomialSchedule, ScheduleConfig, ThawConfig
from pipeline.config.order import OrderConfig, PlainOrderConfig
from pipeline.config.section import Section
from pipeline.config.validation import ValidationConfig
from pipeline.config.watching import MonitorConfig, ProfileConfig, WatchdogConfig


class DataConfig(Section):
    """Where samples come from and how they are read."""

    path: DataLocation | None = None
    """Data set written by `preprocess shard`: its directory, or a URL (`https://`, `s3://`, `gs://`)."""
    mix: MixConfig | None = None
    """Several data sets, in place of `path` and `split`."""
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

    @model_validator(mode="after")
    def _names_its_samples(self) -> DataConfig:
        if (self.path is None) == (self.mix is None):
            found = "neither" if self.mix is None else "both"
            raise ValueError(f"name one data set (data.path) or several (data.mix.sets), not {found}")
        if self.mix is not None and self.split != "train":
            raise ValueError("data.split is for one data set: each set of a mix has a split of its own")
        if self.mix is None or self.mix.weights is None:
            return self
        if self.order.kind == "identity_balanced":
            raise ValueError("P × K batches take people of all sets alike: leave the weights of data.mix.sets out")
        if self.order.kind == "weighted" and self.order.weights is not None:
            raise ValueError("data.order.weights weighs people of all sets: leave the weights of data.mix.sets out")
        return self


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
    precision: Precision = "fp32"
    """Of the backbone's products; the head computes in fp32 whatever stands here. fp16 scales the backbone's gradients
    and leaves out steps in which they overflow."""
    batch_norm: BatchNormGroup = "micro_batch"
    """What batch norm normalises over: a micro-batch, so that the number of ranks changes nothing, or the micro-batches
    that all ranks have at a time."""
    activation_checkpointing: bool = False
    """Compute the activations of each block of the backbone once more in the backward pass instead of keeping them."""
    compile: bool = False
    """Compile the backbone with torch.compile; what cannot be compiled as a whole is an error."""

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
    """How many of the newest stay; the best one of validation stays besides."""
    keep_every_epochs: float | None = Field(None, gt=0)
    """Checkpoints this far apart stay for good; None for none."""
    max_failures: int = Field(3, ge=1)
    """A save that fails (disk full, no permission) leaves the checkpoint before it, and training goes on; after so many
    in a row it stops."""


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
    validation: ValidationConfig | None = None
    """Verification while training; None for none."""
    divergence: DivergenceConfig = DivergenceConfig()
    """What to do when numbers go wrong."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When to save."""
    monitor: MonitorConfig = MonitorConfig()
    """What to write down."""
    watchdog: WatchdogConfig = WatchdogConfig()
    """What becomes of a rank that hangs or is slow."""
    profile: ProfileConfig | None = None
    """Trace some steps into `profile/`; null for none."""
    engine: EngineConfig = DDPConfig()
    """What replicates the backbone."""

    @model_validator(mode="after")
    def _engine_can(self) -> Config:
        check_engine(
            self.engine,
            device=self.device,
            precision=self.training.precision,
            batch_norm=self.training.batch_norm,
            compiles=self.training.compile,
            optimizer=self.optim.backbone.kind,
            freezes=bool(self.freeze) or self.thaw is not None,
        )
        return self

    @model_validator(mode="after")
    def _mining_has_plain_order(self) -> Config:
        if self.mining is not None and self.data.order != PlainOrderConfig():
            raise ValueError("mining fills up batches of the plain order: leave data.order as it is, or mining out")
        if self.mining is not None and self.data.mix is not None and self.data.mix.weights is not None:
            raise ValueError("mining fills up batches of the plain order: leave the weights of data.mix.sets out")
        return self

    @model_validator(mode="after")
    def _a_group_fits(self) -> Config:
        if self.mining is not None and not self.mining.mined_slots(self.training.global_batch):
            raise ValueError(
                f"mining.share {self.mining.share:g} of global_batch {self.training.global_batch} holds no group of "
                f"{self.mining.group_size} slots"
            )
        return self
