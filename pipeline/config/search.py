"""The configuration of a search: which keys of a recipe are tried, how, and by which measure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.config.location import DataLocation
from pipeline.config.section import Section

Plain = bool | int | float | str
_NAME = re.compile(r"[a-z][a-z0-9_]*(\.[A-Za-z0-9_]+)*")


class Parameter(Section):
    """What all parameters share."""

    key: str | None = None
    """Dotted key that it sets; None for its name. Two may set the same key under conditions that exclude each other."""
    when: dict[str, tuple[Plain, ...]] = Field({})
    """Names of other parameters, and the values of theirs with which this one counts; otherwise it is left out."""


class Choice(Parameter):
    """One of some values."""

    kind: Literal["choice"] = "choice"
    of: tuple[Plain, ...] = Field(min_length=1)
    """The values."""


class Uniform(Parameter):
    """A number, any of an interval alike."""

    kind: Literal["uniform"] = "uniform"
    low: float
    """Least value."""
    high: float
    """Greatest value."""

    @model_validator(mode="after")
    def _is_an_interval(self) -> Uniform:
        if not self.low < self.high:
            raise ValueError(f"low {self.low:g} is not below high {self.high:g}")
        return self


class LogUniform(Uniform):
    """A positive number whose logarithm is uniform: each power of ten is as likely as the next."""

    kind: Literal["loguniform"] = "loguniform"  # type: ignore[assignment]
    low: float = Field(gt=0)


class Integer(Parameter):
    """A whole number, any of an interval alike, ends included."""

    kind: Literal["int"] = "int"
    low: int
    """Least value."""
    high: int
    """Greatest value."""

    @model_validator(mode="after")
    def _is_an_interval(self) -> Integer:
        if not self.low < self.high:
            raise ValueError(f"low {self.low} is not below high {self.high}")
        return self


class Sets(Parameter):
    """One of some sets of keys that only make sense together, each under a name."""

    kind: Literal["sets"] = "sets"
    of: dict[str, dict[str, Any]] = Field(min_length=1)
    """By name: dotted keys of the recipe and their values; `{}` leaves the recipe as it is."""


SpaceParameter = Annotated[Choice | Uniform | LogUniform | Integer | Sets, Field(discriminator="kind")]


class RandomSearcher(Section):
    """Draws all parameters independently."""

    kind: Literal["random"] = "random"


class GridSearcher(Section):
    """All combinations of `choice` and `sets`, each `num_samples` times; what is left is drawn."""

    kind: Literal["grid"] = "grid"


class OptunaSearcher(Section):
    """Optuna's tree-structured Parzen estimator (Bergstra et al. 2011); needs the package `optuna`."""

    kind: Literal["optuna"] = "optuna"


class HyperOptSearcher(Section):
    """Hyperopt's tree-structured Parzen estimator; needs the package `hyperopt`."""

    kind: Literal["hyperopt"] = "hyperopt"


class BOHBSearcher(Section):
    """BOHB (Falkner et al. 2018, arXiv:1807.01774); needs `hpbandster` and `ConfigSpace`, and HyperBand to schedule."""

    kind: Literal["bohb"] = "bohb"


class NoScheduler(Section):
    """Every trial runs to its end."""

    kind: Literal["none"] = "none"


class ASHAScheduler(Section):
    """Asynchronous successive halving (Li et al. 2020, arXiv:1810.05934): at 1, r, r² … epochs, the worse ones stop."""

    kind: Literal["asha"] = "asha"
    grace_epochs: float = Field(1.0, gt=0)
    """No trial is stopped before."""
    reduction: float = Field(3.0, gt=1)
    """r: one of so many goes on at each rung."""


class HyperBandScheduler(Section):
    """HyperBand (Li et al. 2018, arXiv:1603.06560): trials pause at rungs until all of their bracket are there."""

    kind: Literal["hyperband"] = "hyperband"
    reduction: float = Field(3.0, gt=1)
    """η."""


class PBTScheduler(Section):
    """Population-based training (Jaderberg et al. 2017, arXiv:1711.09846).

    At intervals trials wait for each other, and those among the worst go on from the checkpoint of one among the best,
    with its parameters changed a little. Only keys that a run may change on its way can be searched so: rates, decay,
    margins; not the network."""

    kind: Literal["pbt"] = "pbt"
    every_validations: int = Field(1, ge=1)
    """Distance between two comparisons."""
    quantile: float = Field(0.25, gt=0, le=0.5)
    """Share of the population at either end."""


class WorkersConfig(Section):
    """The processes of a trial."""

    count: int = Field(1, ge=1)
    """Ranks."""
    cpus: float = Field(1.0, gt=0)
    """CPUs of the cluster that each takes."""
    gpus: float = Field(0.0, ge=0)
    """GPUs that each takes; less than one is for small networks on one rank."""
    max_failures: int = Field(3, ge=0)
    """So often a trial goes on from its checkpoint after a worker or a node died; then it counts as failed."""

    @model_validator(mode="after")
    def _ranks_have_whole_gpus(self) -> WorkersConfig:
        if self.gpus and self.count > 1 and self.gpus != 1:
            raise ValueError(f"{self.count} ranks with {self.gpus:g} GPUs each: one each, or one rank with a share")
        return self


class SearchConfig(Section):
    """A search over the settings of one recipe."""

    recipe: Path
    """The recipe that the search varies, a file of `launch/train.py`."""
    overrides: dict[str, Any] = Field({})
    """Dotted keys that have another value than the recipe's, such as `training.epochs`: in all trials, unless the space
    has them too."""
    output: DataLocation
    """Where all of the search goes, seen by all nodes under the same path, or a URL (`s3://…`). One that stands there
    goes on with `--resume`."""
    space: dict[str, SpaceParameter] = Field(min_length=1)
    """What is searched: dotted keys of the recipe, or names of your choice for `sets` and where `key` is given."""
    metric: str = "val/score"
    """What tells a better setting: one of the figures of `validation`."""
    direction: Literal["max", "min"] = "max"
    """Whether more of it is better."""
    num_samples: int = Field(8, ge=1)
    """How many settings are tried; with a grid, how often each is."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Of the draws of settings. The trials' own seed is the recipe's."""
    searcher: Annotated[
        RandomSearcher | GridSearcher | OptunaSearcher | HyperOptSearcher | BOHBSearcher, Field(discriminator="kind")
    ] = RandomSearcher()
    """Who chooses the settings."""
    scheduler: Annotated[
        NoScheduler | ASHAScheduler | HyperBandScheduler | PBTScheduler, Field(discriminator="kind")
    ] = ASHAScheduler()
    """Which trials end early, by `metric`, never by the training loss."""
    workers: WorkersConfig = WorkersConfig()
    """Processes of a trial."""
    max_concurrent: int | None = Field(None, ge=1)
    """Trials at a time; None for as many as the cluster has room for when the search starts."""
    comparison_seeds: tuple[int, ...] = (1, 2)
    """After the search, the best setting and the recipe's own are each trained with these seeds, for the spread; the
    recipe's own seed is none of them, for with it the best trial would come out as lucky as it was."""

    @model_validator(mode="after")
    def _names_are_keys(self) -> SearchConfig:
        for name in self.space:
            key = self.space[name].key or name
            if not _NAME.fullmatch(name) or not _NAME.fullmatch(key):
                raise ValueError(f"space: {key!r} is no dotted key")
            if self.space[name].kind == "sets" and self.space[name].key is not None:
                raise ValueError(f"space.{name}.key: sets name their keys themselves")
        return self

    @model_validator(mode="after")
    def _conditions_name_parameters(self) -> SearchConfig:
        for name, parameter in self.space.items():
            for other, values in parameter.when.items():
                found = self.space.get(other)
                if found is None or other == name:
                    raise ValueError(f"space.{name}.when: {other!r} is no other parameter of the space")
                if not isinstance(found, Choice | Sets):
                    raise ValueError(f"space.{name}.when: {other!r} is neither choice nor sets")
                unknown = [value for value in values if value not in found.of]
                if unknown:
                    raise ValueError(f"space.{name}.when: {unknown[0]!r} is no value of {other!r}")
        _check_no_circle(self.space)
        return self

    @model_validator(mode="after")
    def _parts_fit(self) -> SearchConfig:
        if self.searcher.kind == "bohb" and self.scheduler.kind != "hyperband":
            raise ValueError("searcher bohb needs scheduler hyperband")
        if self.scheduler.kind == "pbt":
            if self.searcher.kind != "random":
                raise ValueError("scheduler pbt draws settings itself: leave searcher at random")
            for name, parameter in self.space.items():
                if parameter.kind == "sets" or parameter.when:
                    raise ValueError(f"scheduler pbt changes plain, unconditional parameters; space.{name} is none")
        return self


def _check_no_circle(space: Mapping[str, Parameter]) -> None:
    for name in space:
        seen, todo = set(), [name]
        while todo:
            for other in space[todo.pop()].when:
                if other == name:
                    raise ValueError(f"space.{name}.when: depends on itself")
                if other not in seen:
                    seen.add(other)
                    todo.append(other)
