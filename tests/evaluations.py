"""What `launch/evaluate.py` leaves of a model on a test set, made from distances alone."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.evaluate import result
from pipeline.evaluate.pairs import Pair, Photo
from pipeline.evaluate.run import ScoredPairs, add_intervals, environment, measure
from pipeline.evaluate.scores import write_scores

NUM_PAIRS = 600


def make_pairs(seed: int = 0) -> list[Pair]:
    """As many same as different pairs of 60 people, in ten folds."""
    rng = np.random.default_rng(seed)
    pairs = []
    for number in range(NUM_PAIRS):
        left = int(rng.integers(60))
        right = left if number % 2 == 0 else (left + int(rng.integers(1, 60))) % 60
        # numbers of photos that make every pair another
        pairs.append(Pair(Photo(f"p{left}", 1 + number), Photo(f"p{right}", 1001 + number), number * 10 // NUM_PAIRS))
    return pairs


PAIRS = make_pairs()


def distances_of(noise: float, pairs: list[Pair] = PAIRS) -> np.ndarray:
    """A model's squared distances: the more noise, the worse; errors of two models are alike."""
    rng = np.random.default_rng(7)
    same = np.array([pair.same for pair in pairs])
    return np.clip(np.where(same, 0.9, 1.7) + noise * rng.standard_normal(len(pairs)), 0.0, 4.0)


def write_evaluation(
    folder: Path,
    distances: np.ndarray,
    *,
    pairs: list[Pair] = PAIRS,
    model: str = "build/old",
    data: str = "build/faces",
    pairs_sha256: str = "a" * 64,
    knows_people: bool = True,
    notes: tuple[str, ...] = (),
    has_intervals: bool = False,
    described: dict[str, Any] | None = None,
    embedding_ms: float | None = 6.25,
    device: str | None = None,
) -> Path:
    """What `launch/evaluate.py` leaves of a model on a set, without a model; `described` are fields of `Model`."""
    same = np.array([pair.same for pair in pairs])
    fold = np.array([pair.fold for pair in pairs])
    scored = ScoredPairs(pairs, distances, same, fold, {}, len(pairs), 0, np.arange(len(pairs)))
    figures = measure(scored, flip=True)
    evaluation = result.Evaluation(
        created_at="2026-01-01T00:00:00+00:00",
        command="python launch/evaluate.py",
        embedding_s=1.0,
        notes=list(notes),
        verification=add_intervals(figures, scored, by_identity=knows_people) if has_intervals else figures,
        model=result.Model(
            **{
                "checkpoint": model,
                "sha256": hashlib.sha256(model.encode()).hexdigest(),
                "step": 100,
                "num_samples": 1,
                "crop_px": 64,
                "embedding_dim": 16,
                "num_parameters": 1_200_000,
                "multiply_adds": 54_900_000,
                "config": {},
                "dataset": {},
                **(described or {}),
            }
        ),
        speed=None
        if embedding_ms is None
        else result.Speed(embedding_ms=embedding_ms, num_photos=len(pairs), batch=256),
        data=result.Data(
            path=data,
            kind="dataset",
            digest="d",
            split=None,
            pairs="lists/pairs.txt",
            pairs_sha256=pairs_sha256,
            detector={"name": "mtcnn"},
            num_photos=1,
            num_identities=1,
        ),
        environment=environment(torch.device("cpu")).model_copy(update={} if device is None else {"device": device}),
    )
    folder.mkdir(parents=True)
    sha256 = write_scores(folder / "scores.parquet", pairs, distances, pairs_sha256, has_identities=knows_people)
    result.write_json(folder / "evaluation.json", evaluation.model_copy(update={"scores_sha256": sha256}))
    return folder
