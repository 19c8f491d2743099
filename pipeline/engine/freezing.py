"""Which of a backbone's parameters rest, as a function of the position in training.

What rests gets no gradient, no decay and no step of its optimizer. A batch norm whose parameters all rest normalises
with its running statistics and leaves them as they are, as in evaluation: frozen layers are a fixed function.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.config.errors import UserError
from pipeline.config.optim import FreezeRule, ThawConfig
from pipeline.config.schema import Config
from pipeline.model.backbones.build import NETWORK_PREFIX, FaceModel
from pipeline.model.backbones.stages import find_stages


def with_stages(config: Config, model: FaceModel, crop_px: int) -> Config:
    """The same configuration with the network's own stages where it says when to thaw, but not what.

    Args:
        config: of the run.
        model: its network, on the meta device.
        crop_px: side of its crops.

    Raises:
        UserError: a network of one stage.
    """
    if config.thaw is None or config.thaw.stages is not None:
        return config
    parameters = {name for name, _ in model.named_parameters()}
    *stages, _ = (
        tuple(name.removeprefix(NETWORK_PREFIX) + ("" if name in parameters else ".*") for name in stage)
        for stage in find_stages(model, crop_px)
    )
    if not stages:
        raise UserError("thaw.stages", "the network is a single stage", "two or more", "name them by patterns")
    return config.model_copy(update={"thaw": config.thaw.model_copy(update={"stages": tuple(stages)})})


class Freezing:
    """A freezing schedule over one network. Nothing here is collective; all ranks come to the same answers.

    Args:
        rules: patterns and when they end.
        thaw: stages that are let go one after another, by name (`with_stages`), or None.
        model: the network, with nothing frozen yet.

    Raises:
        UserError: a pattern that names no parameter.
    """

    def __init__(self, rules: Sequence[FreezeRule], thaw: ThawConfig | None, model: nn.Module) -> None:
        self._parameters = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
        self._norms = [
            (module, _watched(f"{path}.", module))
            for path, module in model.named_modules()
            if isinstance(module, _BatchNorm) and module.track_running_stats
        ]
        names = self._parameters.keys() | {name for _, watched in self._norms for name in watched}
        self._ends: dict[str, float] = {}
        """Epoch at which a name is free; names that never rest are not here."""
        patterns = [(f"freeze.{number}", rule.pattern, rule.until_epoch) for number, rule in enumerate(rules)]
        if thaw is not None:
            assert thaw.stages is not None
            for number, stage in enumerate(thaw.stages):
                end = (len(thaw.stages) - number) * thaw.every_epochs
                globs = (stage,) if isinstance(stage, str) else stage
                patterns += [(f"thaw.stages.{number}", glob, end) for glob in globs]
        for key, pattern, until in patterns:
            matched = [name for name in names if fnmatchcase(name.removeprefix(NETWORK_PREFIX), pattern)]
            if not matched:
                known = [name.removeprefix(NETWORK_PREFIX) for name in self._parameters]
                found = f"{pattern!r} names no parameter of the backbone"
                raise UserError(key, found, f"a pattern for names from {known[0]} to {known[-1]}")
            for name in matched:
                self._ends[name] = max(self._ends.get(name, 0.0), float("inf") if until is None else until)

    def at(self, epoch: float) -> frozenset[str]:
        """Names, as in `named_parameters`, of what rests in the step that begins after so many epochs."""
        return frozenset(name for name in self._parameters if self._rests(name, epoch))

    def hold_statistics(self, epoch: float) -> None:
        """Put the batch norms that rest into eval mode, the others into train mode."""
        for norm, watched in self._norms:
            norm.train(not all(self._rests(name, epoch) for name in watched))

    def num_trained(self, epoch: float) -> int:
        """How many numbers a step moves."""
        return sum(numel for name, numel in self._parameters.items() if not self._rests(name, epoch))

    def describe(self, epoch: float) -> str:
        """What rests now and from when on nothing does, in a line; empty where nothing ever rests."""
        if not self._ends:
            return ""
        total, end = sum(self._parameters.values()), max(self._ends.values())
        until = "to the end" if end == float("inf") else f"the last of them until epoch {end:g}"
        return f"{total - self.num_trained(epoch):,} of the backbone's {total:,} parameters are frozen, {until}"

    def _rests(self, name: str, epoch: float) -> bool:
        return epoch < self._ends.get(name, 0.0)


def _watched(prefix: str, norm: nn.Module) -> list[str]:
    """The names that decide whether a batch norm rests: its parameters, or where it has none, its running mean."""
    own = [name for name, p in norm.named_parameters(recurse=False) if p.requires_grad]
    return [prefix + name for name in own or ["running_mean"]]
