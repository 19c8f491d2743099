"""Configuration of optimizers, learning-rate schedules, the moving average of weights, and freezing."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config.section import Section

Betas = tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]]


class SGDConfig(Section):
    """Stochastic gradient descent with momentum."""

    kind: Literal["sgd"] = "sgd"
    lr: float = Field(0.1, gt=0)
    """Peak learning rate."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum."""
    weight_decay: float = Field(5e-4, ge=0)
    """L2 decay; never on norms' parameters and biases."""


class AdamConfig(Section):
    """Adam (Kingma and Ba 2015, arXiv:1412.6980)."""

    kind: Literal["adam"] = "adam"
    lr: float = Field(1e-3, gt=0)
    """Peak learning rate."""
    betas: Betas = (0.9, 0.999)
    """Decay rates of the two moments."""
    weight_decay: float = Field(0.0, ge=0)
    """L2 decay, added to the gradient before the moments; never on norms' parameters and biases."""


class AdamWConfig(Section):
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101)."""

    kind: Literal["adamw"] = "adamw"
    lr: float = Field(1e-3, gt=0)
    """Peak learning rate."""
    betas: Betas = (0.9, 0.999)
    """Decay rates of the two moments."""
    weight_decay: float = Field(0.05, ge=0)
    """Decoupled decay; never on norms' parameters and biases."""


class LARSConfig(Section):
    """Momentum whose rate follows each layer's ‖w‖/‖g‖, for large batches (You et al. 2017, arXiv:1708.03888)."""

    kind: Literal["lars"] = "lars"
    lr: float = Field(1.0, gt=0)
    """Peak learning rate, the paper's global one."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum."""
    weight_decay: float = Field(5e-4, ge=0)
    """L2 decay; never on norms' parameters and biases, whose rate is not adapted either."""
    trust: float = Field(0.001, gt=0)
    """η, what share of its length a layer moves at rate 1."""


class LAMBConfig(Section):
    """Adam whose update is brought to each layer's length, for large batches (You et al. 2020, arXiv:1904.00962)."""

    kind: Literal["lamb"] = "lamb"
    lr: float = Field(2e-3, gt=0)
    """Peak learning rate."""
    betas: Betas = (0.9, 0.999)
    """Decay rates of the two moments."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled decay; never on norms' parameters and biases, whose rate is not adapted either."""


HeadOptimizerConfig = SGDConfig | AdamConfig | AdamWConfig
OptimizerConfig = HeadOptimizerConfig | LARSConfig | LAMBConfig


class OptimConfig(Section):
    """Optimizers of the two parts; their gradients are clipped apart."""

    backbone: Annotated[OptimizerConfig, Field(discriminator="kind")] = SGDConfig()
    """Optimizer of the backbone."""
    head: Annotated[HeadOptimizerConfig, Field(discriminator="kind")] = SGDConfig()
    """Optimizer of the class centres; none that needs a layer's length, for a layer's rows lie on many ranks and
    only some of them may move."""
    clip_backbone_norm: float | None = Field(5.0, gt=0)
    """Greatest L2 norm of the backbone's gradient; None for no clipping."""
    clip_head_norm: float | None = Field(None, gt=0)
    """Greatest L2 norm of the head's gradient over all ranks; None for no clipping."""


class EmaConfig(Section):
    """A moving average of the backbone's weights and buffers, in float32, beside the weights that are trained."""

    decay: float = Field(0.999, gt=0, lt=1)
    """Weight of the old average at an update; 1/(1 − decay) updates are its memory."""
    every_steps: int = Field(1, ge=1)
    """Optimizer updates between two updates of the average."""
    warmup: bool = True
    """Begin with (1 + n)/(10 + n) at the n-th update where that is less, so that the first weights are forgotten."""


class FreezeRule(Section):
    """Some of the backbone's parameters do not move: no gradient, no decay, no step of their optimizer.

    A batch norm whose parameters all rest keeps its running statistics, and normalises with them.
    """

    pattern: str = Field(min_length=1)
    """Names of parameters, where `*` stands for anything, dots included: `stem.*`, `layer[12].*`, `*`."""
    until_epoch: float | None = Field(None, gt=0)
    """Epoch at which they are let go; None for the whole run."""


class ThawConfig(Section):
    """The stages are frozen at first and let go one by one, the last one first."""

    stages: Annotated[tuple[str | tuple[str, ...], ...], Field(min_length=1)] | None = None
    """From the network's input to its output: patterns as of `freeze`, one or several a stage. What none of them
    names trains from the beginning. None for all of the network's own stages but the last, which makes the embedding;
    the run's config.yaml names them."""
    every_epochs: float = Field(gt=0)
    """Epochs before the last stage is let go, and between two stages."""


class _Schedule(Section):
    warmup_epochs: float = Field(0.0, ge=0)
    """Length of the linear warm-up."""


class PolynomialSchedule(_Schedule):
    """Factor (1 − t)^power after a linear warm-up, t being the share of the epochs after it."""

    kind: Literal["polynomial"] = "polynomial"
    power: float = Field(2.0, gt=0)
    """Exponent."""


class CosineSchedule(_Schedule):
    """Half a cosine from 1 to `floor` after a linear warm-up."""

    kind: Literal["cosine"] = "cosine"
    floor: float = Field(0.0, ge=0, le=1)
    """Factor at the end."""


class CosineRestartsSchedule(_Schedule):
    """Half a cosine again and again after a linear warm-up (SGDR, Loshchilov and Hutter 2017, arXiv:1608.03983)."""

    kind: Literal["cosine_restarts"] = "cosine_restarts"
    cycle_epochs: float = Field(gt=0)
    """T_0, length of the first cycle, counted from the end of the warm-up."""
    cycle_factor: float = Field(1.0, ge=1)
    """T_mult, how much longer each cycle is than the one before."""
    floor: float = Field(0.0, ge=0, le=1)
    """Factor at the end of a cycle."""


class StepSchedule(_Schedule):
    """Factor `gamma` more at each milestone."""

    kind: Literal["step"] = "step"
    milestones: tuple[Annotated[float, Field(gt=0)], ...] = Field(min_length=1)
    """Epochs, ascending, counted from the beginning of the run, its warm-up included."""
    gamma: float = Field(0.1, gt=0, le=1)
    """What each milestone multiplies the rate by."""

    @model_validator(mode="after")
    def _milestones_ascend(self) -> StepSchedule:
        if any(later <= earlier for earlier, later in pairwise(self.milestones)):
            raise ValueError(f"milestones must ascend, found {list(self.milestones)}")
        return self


class ConstantSchedule(_Schedule):
    """Factor 1 after a linear warm-up."""

    kind: Literal["constant"] = "constant"


ScheduleConfig = PolynomialSchedule | CosineSchedule | CosineRestartsSchedule | StepSchedule | ConstantSchedule
