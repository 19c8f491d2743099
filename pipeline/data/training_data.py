"""From a configuration to the samples of a run: one data set, or a mix of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.config.errors import UserError
from pipeline.config.location import user_cache
from pipeline.config.schema import DataConfig
from pipeline.data.dataset_format import CropInfo
from pipeline.data.manifest import Dataset, SplitIndex, open_dataset
from pipeline.data.mix import mix_splits
from pipeline.data.store.opening import check_stores


@dataclass(frozen=True)
class TrainingSet:
    """One data set, and the split of it that is trained on."""

    name: str
    """In the mix; empty where there is none."""
    dataset: Dataset
    split: SplitIndex

    @property
    def num_bytes(self) -> int:
        """Of the split's tars."""
        return self.dataset.info.splits[self.split.split].num_bytes


@dataclass(frozen=True)
class TrainingData:
    """What a run trains on."""

    sets: tuple[TrainingSet, ...]
    """In order; one where there is no mix."""
    split: SplitIndex
    """The samples of all of them."""

    @property
    def crop(self) -> CropInfo:
        """Geometry of the crops, the same in all sets."""
        return self.sets[0].dataset.info.crop


def open_training_data(config: DataConfig) -> TrainingData:
    """Open what a configuration names.

    Raises:
        UserError: a data set or split that is not there or cannot be read, sets whose crops differ, or an order that a
            remote set's cache has no room for.
    """
    if config.mix is None:
        assert config.path is not None
        dataset = open_dataset(config.path, config.cache)
        sets = [TrainingSet("", dataset, dataset.split(config.split))]
        split = sets[0].split
    else:
        sets = []
        for name, member in config.mix.sets.items():
            dataset = open_dataset(member.path, config.cache)
            sets.append(TrainingSet(name, dataset, dataset.split(member.split)))
        _check_crops(sets)
        folder = (user_cache() if config.cache is None else config.cache.path) / "mixes"
        parts = {one.name: one.split for one in sets}
        split = mix_splits(parts, config.mix.labels, config.mix.weights, folder)
    check_stores([(one.split, one.num_bytes) for one in sets], config.order)
    return TrainingData(tuple(sets), split)


def _check_crops(sets: Sequence[TrainingSet]) -> None:
    first = sets[0].dataset.info.crop
    for other in sets[1:]:
        if difference := other.dataset.info.crop.difference_from(first):
            raise UserError(
                f"data.mix.sets.{other.name}",
                f"{difference} ({other.split.name})",
                f"{first.size_px} px, aligned as in {sets[0].name}: all sets of a mix have one geometry",
                "shard its photos again with the same --size",
            )
