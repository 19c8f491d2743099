"""Configuration of the order of samples."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config.section import Section


class PlainOrderConfig(Section):
    """Each photo once an epoch, in an order shuffled over the whole split."""

    kind: Literal["plain"] = "plain"
    min_photos: int = Field(1, ge=1)
    """Leave out people with fewer photos."""
    max_photos: int | None = Field(None, ge=1)
    """Take so many photos of a person an epoch at most; with the epochs, all of them take their turn."""

    @model_validator(mode="after")
    def _bounds_fit(self) -> PlainOrderConfig:
        if self.max_photos is not None and self.max_photos < self.min_photos:
            raise ValueError(f"max_photos {self.max_photos} is less than min_photos {self.min_photos}")
        return self


class IdentityBalancedConfig(Section):
    """P people with K photos each a global batch, what mining needs (FaceNet, Schroff et al. 2015, arXiv:1503.03832).

    A person appears once a batch; slots of the global batch beyond P × K go to photos of other people.
    """

    kind: Literal["identity_balanced"] = "identity_balanced"
    num_identities: int = Field(32, ge=2)
    """P, people of a global batch."""
    photos_per_identity: int = Field(4, ge=2)
    """K, photos of each. Someone with fewer left is topped up with photos that were seen; these are counted."""
    min_photos: int = Field(2, ge=1)
    """Leave out people with fewer photos; they may still be among the others."""


class WeightedOrderConfig(Section):
    """Each slot draws a person by weight and one of their photos, again and again: an epoch has no exact content."""

    kind: Literal["weighted"] = "weighted"
    power: float = Field(0.5, ge=0, le=1)
    """A person with n photos weighs n to this power: 1 as in the data, 0 all alike."""
    weights: Path | None = None
    """A .csv or .parquet list with the columns identity and weight, which multiplies; people it lacks weigh 1."""


class StreamingOrderConfig(Section):
    """Each photo once an epoch, in an order that reads shards in long runs: for spinning disks and slow stores.

    Runs of neighbours are shuffled, and so are the photos within a window of some runs.
    """

    kind: Literal["streaming"] = "streaming"
    block_photos: int = Field(1024, ge=1)
    """Photos of a run of neighbours in a shard."""
    window_blocks: int = Field(32, ge=1)
    """Runs that are shuffled together: what a node reads ahead, in memory or in its cache."""


OrderConfig = Annotated[
    PlainOrderConfig | IdentityBalancedConfig | WeightedOrderConfig | StreamingOrderConfig, Field(discriminator="kind")
]
