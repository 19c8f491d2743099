"""Verification during training, sharded over all ranks, without a trace in what is trained."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from pipeline import dist
from pipeline.checkpoint import ValidationState
from pipeline.config.errors import UserError
from pipeline.config.validation import ValidationConfig, ValidationSet
from pipeline.data.dataset_format import CropInfo
from pipeline.data.manifest import open_dataset
from pipeline.evaluate.embed import Embedder, Embeddings, extract_embeddings
from pipeline.evaluate.pairs import PairList, deal_into_folds, draw_pairs, read_pairs
from pipeline.evaluate.photos import DatasetPhotos
from pipeline.evaluate.run import measure, score_embeddings

_BATCH = 128


@dataclass(frozen=True)
class ValidationPairs:
    """A set, opened."""

    photos: DatasetPhotos
    pairs: PairList


def open_validation(config: ValidationConfig | None, crop: CropInfo) -> dict[str, ValidationPairs]:
    """Open what validation needs; `crop` is the geometry of the crops that are trained on. Not collective.

    Raises:
        UserError: a set or list that cannot be read, or crops of another geometry.
    """
    return {} if config is None else {name: _open(name, one, crop) for name, one in config.sets.items()}


class Validator:
    """Scores a network on some sets, and remembers the best score.

    Args:
        config: what to score.
        sets: opened, see `open_validation`.
        crop_px: side of the crops.
        state: of the checkpoint that the run goes on from, None for a new run.
    """

    def __init__(
        self,
        config: ValidationConfig,
        sets: Mapping[str, ValidationPairs],
        crop_px: int,
        state: ValidationState | None,
    ) -> None:
        self.config = config
        self.state = state or ValidationState()
        self._sets, self._crop_px = sets, crop_px

    @property
    def is_patience_over(self) -> bool:
        """Whether so many validations found nothing better that training ends."""
        return is_patience_over(self.config, self.state)

    def run(self, model: nn.Module, device: torch.device, step: int) -> tuple[dict[str, float], bool]:
        """Score the network as it is. Collective on all ranks; each embeds its part of the photos.

        Args:
            model: uint8 [B, 3, H, W] to [B, D]; in the state it was in when this returns.
            device: of the model.
            step: optimizer updates done so far.

        Returns:
            Figures by `val/SET/NAME`, the same on all ranks, and whether this is the best score so far.

        Raises:
            UserError: embeddings that are not finite, or no pair with both photos; on all ranks.
        """
        began = time.monotonic()
        figures: dict[str, float] = {}
        with _evaluating(model):
            for name, one in self._sets.items():
                figures |= {f"val/{name}/{key}": value for key, value in self._score(name, one, model, device).items()}
        accuracies = {name: figures[f"val/{name}/accuracy"] for name in self._sets}
        best_by = self.config.best_by
        score = float(np.mean(list(accuracies.values()))) if best_by is None else accuracies[best_by]
        is_best = self.state.best_score is None or score > self.state.best_score
        if is_best:
            self.state = ValidationState(best_score=score, best_step=step)
        else:
            self.state = self.state.model_copy(update={"num_since_best": self.state.num_since_best + 1})
        figures |= {"val/score": score, "val/seconds": time.monotonic() - began}
        return figures, is_best

    def _score(self, name: str, one: ValidationPairs, model: nn.Module, device: torch.device) -> Mapping[str, float]:
        photos = one.pairs.photos()
        first, stop = dist.partition(len(photos), dist.rank(), dist.world_size())
        embedder = Embedder(model, self._crop_px, device, f"validation.sets.{name}")
        found, problem = None, None
        try:
            found = extract_embeddings(embedder, one.photos, photos[first:stop], batch=_BATCH)
        except UserError as error:
            problem = error
        parts: list[tuple[Embeddings | None, UserError | None]] = dist.all_gather_objects((found, problem))
        for _, failure in parts:
            if failure is not None:
                raise failure
        gathered = [part for part, _ in parts if part is not None]
        whole = Embeddings(
            photos=[photo for part in gathered for photo in part.photos],
            vectors=np.concatenate([part.vectors for part in gathered if len(part.photos)] or [np.empty((0, 0))]),
            missing={photo: reason for part in gathered for photo, reason in part.missing.items()},
        )
        measured = measure(score_embeddings(whole, one.pairs, len(photos)), flip=True)
        assert measured.accuracy is not None, "a pair list has folds"
        return {
            "accuracy": measured.accuracy.mean,
            "auc": measured.auc,
            "eer": measured.eer,
            "num_pairs": measured.num_pairs,
        }


def is_patience_over(config: ValidationConfig | None, state: ValidationState | None) -> bool:
    """Whether so many validations found nothing better that training ends. Not collective."""
    if config is None or config.patience is None or state is None:
        return False
    return state.num_since_best >= config.patience


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module into eval mode, and afterwards into the mode it was in: some may be frozen."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _open(name: str, config: ValidationSet, crop: CropInfo) -> ValidationPairs:
    key = f"validation.sets.{name}"
    dataset = open_dataset(config.path)
    if difference := dataset.info.crop.difference_from(crop):
        raise UserError(key, f"{difference} ({config.path})", f"{crop.size_px} px, aligned as the training data")
    if config.pairs is None:
        photos = DatasetPhotos(dataset, [config.split])
        return ValidationPairs(photos, draw_pairs(photos.numbers(), config.path))
    listed = read_pairs(config.pairs)
    pairs = listed if listed.num_folds > 1 else deal_into_folds(listed.pairs)
    return ValidationPairs(DatasetPhotos(dataset, sorted(dataset.info.splits)), pairs)
