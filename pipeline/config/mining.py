"""The configuration section of offline mining; docs/metric-learning.md says what it does."""

from __future__ import annotations

from pydantic import Field, model_validator

from pipeline.config.section import Section


class MiningConfig(Section):
    """Hard examples found ahead over a subset of the split (FaceNet, Schroff et al. 2015, section 3.2)."""

    every_steps: int = Field(500, ge=1)
    """Distance between two rounds, each of which makes a new list with the network as it stands."""
    start_step: int = Field(1000, ge=0)
    """Step of the first round: before, batches are plain, since an untrained network finds nothing worth a slot."""
    subset: int = Field(20_000, ge=4)
    """Photos that a round embeds, at most; each person has at least two of them."""
    photos_per_person: int = Field(8, ge=2)
    """Photos that a round takes of a person, at most."""
    share: float = Field(0.25, gt=0, lt=1)
    """Part of each global batch that comes from the list, rounded down to whole groups."""
    negatives: int = Field(2, ge=1)
    """Nearest photos of others that follow an anchor and its hardest positive in a group."""
    margin: float = Field(0.2, ge=0, le=4)
    """An anchor goes into the list if d²(anchor, hardest positive) + margin > d²(anchor, nearest negative)."""

    @property
    def group_size(self) -> int:
        """Slots of an anchor, its positive and its negatives."""
        return 2 + self.negatives

    def mined_slots(self, global_batch: int) -> int:
        """Slots of a global batch that come from the list: whole groups, fewer than all."""
        return int(self.share * global_batch) // self.group_size * self.group_size

    @model_validator(mode="after")
    def _two_people_fit(self) -> MiningConfig:
        if self.subset < 2 * self.photos_per_person:
            raise ValueError(f"subset {self.subset} is less than two people of {self.photos_per_person} photos")
        return self
