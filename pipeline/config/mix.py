"""Configuration of a mix: training on several data sets at once."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config.location import DataLocation
from pipeline.config.section import Section

MAX_ROUND = 10_000


class MixedSet(Section):
    """One data set of a mix."""

    path: DataLocation
    """Its directory, or a URL."""
    split: str = "train"
    """Which of its splits."""
    weight: int | None = Field(None, ge=1)
    """Slots of this set in each round of the stream, a round being the sum of all weights: 3 and 1 give three quarters
    and one. Null for all sets: every photo once an epoch, so sets count by size."""


class MixConfig(Section):
    """Several data sets with crops of one geometry."""

    sets: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], MixedSet] = Field(min_length=2)
    """The sets, under names of your choice (a-z, 0-9, _). Labels follow their order: a set that is added at the end
    leaves the labels of the others as they are."""
    labels: Literal["merged", "disjoint", "separate"] = "merged"
    """Who is who across sets. `merged`: the same name is the same person. `disjoint`: all people are different,
    whatever they are called. `separate`: nobody knows, so photos of different sets are never compared: each set has a
    head of its own over one backbone."""

    @model_validator(mode="after")
    def _weights_fit(self) -> MixConfig:
        weights = [one.weight for one in self.sets.values()]
        given = [weight for weight in weights if weight is not None]
        if given and len(given) < len(weights):
            raise ValueError("some sets have a weight and some have none: give one to all, or to none")
        if sum(given) > MAX_ROUND:
            raise ValueError(f"the weights add up to {sum(given)}: at most {MAX_ROUND}, so that a round is short")
        return self

    @property
    def weights(self) -> tuple[int, ...] | None:
        """Slots of each set in a round; None where sets count by size."""
        weights = tuple(one.weight for one in self.sets.values() if one.weight is not None)
        return weights or None
