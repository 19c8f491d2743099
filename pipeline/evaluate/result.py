"""What an evaluation found, as written to `evaluation.json`. `docs/evaluation.md` explains the fields."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pipeline.atomic_write import write_atomically
from pipeline.config.errors import UserError
from pipeline.evaluate.result_sections import Clusters, Fairness, Frozen, PeopleMap, Quality, Robustness
from pipeline.input_spec import InputSpec

SCHEMA_VERSION = 3


class Fold(Frozen):
    """One fold's result at the threshold that was best on the others."""

    fold: int
    """From 1."""
    num_pairs: int
    accuracy: float
    threshold: float
    """Squared distance."""


class Accuracy(Frozen):
    """Cross-validated accuracy over the folds."""

    mean: float
    std: float
    per_fold: list[float]
    folds: list[Fold]


class TarAtFar(Frozen):
    """True accept rate where at most the named share of different pairs is accepted."""

    tar: float | None
    """null where there are too few different pairs to measure it."""
    far: float | None
    """The false accept rate really reached there, at most the one asked for."""
    threshold: float | None
    """Accepted when the squared distance is at most this; null where only a threshold that accepts nothing will do."""
    num_different_needed: int
    """The least number of different pairs that this rate takes."""


class Threshold(Frozen):
    """The best single threshold on all pairs; optimistic, as nothing is held out."""

    squared_distance: float
    cosine: float
    accuracy: float


class FixedThreshold(Frozen):
    """What a threshold does that was not chosen on these pairs."""

    squared_distance: float
    """A pair below it is accepted."""
    cosine: float
    accuracy: float
    far: float
    tar: float


class Bounds(Frozen):
    """The ends of an interval."""

    low: float
    high: float


class Intervals(Frozen):
    """Bootstrap intervals of the figures."""

    level: float
    num_resamples: int
    unit: Literal["identity", "pair"]
    """What was drawn with replacement; pairs where it is not known who is on the photos."""
    figures: dict[str, Bounds | None]
    """Keys `accuracy`, `auc`, `eer`, `d_prime` and `tar_at_far.1e-3` for each rate that was measured.

    null where a figure could seldom be computed from the pairs drawn.
    """


class RocPoints(Frozen):
    """The ROC, thinned for drawing; the figures were computed on all points."""

    far: list[float]
    tar: list[float]


class Histogram(Frozen):
    """Counts of cosine scores between neighbouring edges."""

    edges: list[float]
    same: list[int]
    different: list[int]


class Missing(Frozen):
    """A photo that the pair list names and that could not be used."""

    photo: str
    reason: str


class GroupFigures(Frozen):
    """Verification within one group: the pairs whose photos are both of it."""

    group: str
    num_pairs: int
    num_same: int
    num_different: int
    accuracy: float | None
    """Mean over the folds, each judged at the threshold that is best on the group's others; null where fewer than two
    folds have pairs, and without folds."""
    accuracy_std: float | None
    auc: float | None
    """This and what follows is null where the group has pairs of one kind only."""
    eer: float | None
    tar_at_far: dict[str, TarAtFar] | None


class Verification(Frozen):
    """Everything measured on pairs."""

    protocol: str
    """How the accuracy was measured, with the number of folds that have pairs."""
    unit: Literal["photo", "template"] = "photo"
    """What is compared: single photos, or templates of several."""
    flip: bool
    """Whether the mirror image's embedding was added."""
    num_pairs: int
    num_same: int
    num_different: int
    num_pairs_dropped: int
    """Pairs of the list that need a missing photo."""
    missing: list[Missing]
    accuracy: Accuracy | None
    """null where the protocol has no folds, as IJB's."""
    tar_at_far: dict[str, TarAtFar]
    """Keys `1e-1` to `1e-6`."""
    auc: float
    eer: float
    d_prime: float | None
    """null where scores have no spread."""
    best_threshold: Threshold
    fixed_threshold: FixedThreshold
    """FaceNet's 1.1 on the squared distance."""
    carried_threshold: FixedThreshold | None = None
    """The best threshold of the evaluation that was named; null when none was."""
    intervals: Intervals | None = None
    by_group: dict[str, list[GroupFigures]] | None = None
    """By the name of a way to group photos (`race`), the figures within its groups; null where pairs have none."""
    roc: RocPoints
    histogram: Histogram


class TpirAtFpir(Frozen):
    """True positive identification rate where at most the named share of strangers' searches returns anybody."""

    tpir: float | None
    """null where there are too few strangers' searches to measure it."""
    fpir: float | None
    """The rate really reached there, at most the one asked for."""
    threshold: float | None
    """Cosine; people who score above it are returned."""
    num_unmated_needed: int
    """The least number of strangers' searches that this rate takes."""


class OpenSet(Frozen):
    """Searches among a part of the people, by them and by the others."""

    num_gallery: int
    num_mated: int
    """Searches for people in the gallery."""
    num_unmated: int
    """Searches for people who are not."""
    tpir_at_fpir: dict[str, TpirAtFpir]
    """Keys `1e-1` to `1e-3`."""


class Distractors(Frozen):
    """Searches among strangers: MegaFace's challenge 1."""

    path: str
    num_distractors: int
    """Embedded."""
    num_missing: int
    """Photos that could not be embedded."""
    num_own: int
    """Photos left out because their person is among those who search."""
    rank1: dict[str, float]
    """By the number of distractors (`10`, `100`, …), the share of searches that the right person's photo wins."""


class Identification(Frozen):
    """Searches among all people of a split, each enrolled with one photo."""

    protocol: str
    num_gallery: int
    """People."""
    num_probes: int
    num_missing: int
    """Photos of the split that could not be embedded, and are in no search."""
    rank: dict[str, float]
    """Share of the probes whose person is among the first 1, 5, 10."""
    rank_intervals: dict[str, Bounds | None]
    """95 %, over people, as `Intervals`."""
    cmc: list[float]
    """The same for 1, 2, …, at most 50."""
    open_set: OpenSet
    distractors: Distractors | None = None
    """null unless distractors were named."""


class Model(Frozen):
    """Where the embeddings come from. What is not known of a model of its kind is null."""

    kind: Literal["run", "onnx", "python", "embeddings"] = "run"
    """A training run, an ONNX file, a Python callable, or a file of embeddings."""
    checkpoint: str
    """The run or its checkpoint, the file, or `module:function`."""
    sha256: str | None = None
    """Of the file, for a callable that of its module, for a run that of `checkpoint.json`, which no other checkpoint
    shares: it holds configuration, data, step and the last losses."""
    input: InputSpec | None = None
    """What is fed to an ONNX file or a callable."""
    output: str | None = None
    """Which output of an ONNX file is the embedding."""
    step: int | None = None
    num_samples: int | None = None
    """Samples the model was trained on, repeats counted."""
    crop_px: int | None = None
    embedding_dim: int
    num_parameters: int | None = None
    """Of an ONNX file, the numbers that it stores as weights."""
    multiply_adds: int | None = None
    """Of the products and convolutions of a forward pass over one photo; null where they cannot be counted."""
    config: dict[str, Any] | None = None
    """The training configuration."""
    dataset: dict[str, Any] | None = None
    """The training data set's description, its digest included."""
    weights: Literal["ema", "raw"] | None = None
    """Which were measured: the moving average of the weights, or the weights themselves."""


class Speed(Frozen):
    """How fast the model embedded on the device that `environment` names."""

    embedding_ms: float
    """Milliseconds a photo, the median of batches: a forward pass, with `flip` one of the mirror image besides, and the
    way to the device and back. Reading and decoding are not in it."""
    num_photos: int
    """Photos timed."""
    batch: int
    """Photos a batch."""


class Data(Frozen):
    """What the model was tested on."""

    path: str
    kind: Literal["dataset", "photos", "pair_bin", "templates"]
    protocol: str | None = None
    """The test set by name, as `--protocol` takes it; null for a list in LFW's format and for pairs that were drawn."""
    digest: str | None
    split: str | None
    """The split that pairs were drawn from; null for a list that was named."""
    pairs: str
    """Path of the pair list, of the folder of lists, or of the `.bin` file that holds photos and pairs."""
    pairs_sha256: str
    """Of the file; of several files, of their content one after the other."""
    detector: dict[str, Any]
    num_photos: int
    """Photos embedded."""
    num_identities: int | None
    """Null where no more than the pairs are known, as of a `.bin` file."""


class Environment(Frozen):
    """On what it ran."""

    versions: dict[str, str]
    platform: str
    device: str
    num_cores: int


class Evaluation(Frozen):
    """The content of `evaluation.json`."""

    schema_version: int = SCHEMA_VERSION
    created_at: str
    """UTC, ISO 8601."""
    command: str
    """How to reproduce it."""
    embedding_s: float
    """Time spent on reading and embedding photos."""
    notes: list[str]
    """What a reader must know before trusting the figures."""
    verification: Verification
    scores_sha256: str | None = None
    """Of the `scores.parquet` beside it; null for pairs of templates, which have none."""
    identification: Identification | None = None
    """null unless it was asked for."""
    robustness: Robustness | None = None
    """As `identification`, and so are the next three."""
    quality: Quality | None = None
    people_map: PeopleMap | None = None
    clusters: Clusters | None = None
    fairness: Fairness | None = None
    """null unless the pairs come with groups."""
    model: Model
    speed: Speed | None = None
    """null where no model ran."""
    data: Data
    environment: Environment


def read_best_threshold(path: Path) -> float:
    """The best threshold, as a squared distance, of an `evaluation.json` of any version.

    Raises:
        UserError: no such file, or it holds none.
    """
    try:
        threshold = json.loads(path.read_text(encoding="utf-8"))["verification"]["best_threshold"]["squared_distance"]
        if isinstance(threshold, int | float) and 0.0 <= threshold <= 4.0:
            return float(threshold)
        found = f"a best threshold of {threshold!r}"
    except OSError as error:
        found = f"unreadable ({error.strerror})"
    except (ValueError, KeyError, TypeError):
        found = "no best threshold in it"
    raise UserError(path, found, "an evaluation.json that `launch/evaluate.py` wrote")


def write_json(path: Path, evaluation: Evaluation) -> None:
    """Write the file; the final name never bears a partial one."""
    write_text(path, evaluation.model_dump_json(indent=2) + "\n")


def write_text(path: Path, content: str, remedy: str = "--output FOLDER") -> None:
    """Write UTF-8 text; see `write_bytes`."""
    write_bytes(path, content.encode(), remedy)


def write_bytes(path: Path, content: bytes, remedy: str = "--output FOLDER") -> None:
    """Write a file under its final name at once.

    Raises:
        UserError: the system refuses, be it for want of space or of rights; `remedy` says where else it could go.
    """
    try:
        write_atomically(path, content)
    except OSError as error:
        raise UserError(path, f"cannot be written ({error.strerror})", remedy=remedy) from None
