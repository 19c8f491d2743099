"""SER-FIQ by hand and against a loop; the curves of norm and SER-FIQ as a section."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.config.backbones import NeckKind
from pipeline.config.errors import UserError
from pipeline.evaluate.embed import Embedder, Embeddings, extract_embeddings
from pipeline.evaluate.pairs import Pair, PairList, Photo
from pipeline.evaluate.photo_quality import measure_quality, reject_figures, same_pair_photos, start_threshold
from pipeline.evaluate.photos import Crop
from pipeline.evaluate.run import score_embeddings
from pipeline.evaluate.ser_fiq import ser_fiq, stability, why_not
from pipeline.model.backbones.neck import Neck

SIDE = 4


class Model(nn.Module):
    """Pixels straight into a neck."""

    def __init__(self, kind: NeckKind = "bn_dropout_fc_bn", dropout: float = 0.5) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.neck = Neck(kind, 3, (SIDE, SIDE), 8, dropout)
        self.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.neck(images.float() / 127.5 - 1)
        return out


class Memory:
    def load(self, photo: Photo) -> Crop:
        return np.random.default_rng(photo.number).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def embedder(model: nn.Module) -> Embedder:
    return Embedder(model, SIDE, torch.device("cpu"), "model")


PHOTOS = [Photo("a", number) for number in range(7)]


def test_stability_by_hand() -> None:
    same = [[3.0, 0.0], [1.0, 0.0], [0.5, 0.0]]
    # Distances sqrt(2), sqrt(2) and 2.
    three = [[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]
    found = stability(torch.tensor([same, three], dtype=torch.float64))
    mean = (2 * math.sqrt(2) + 2) / 3
    assert found.tolist() == pytest.approx([1.0, 2 / (1 + math.exp(mean))])


def test_the_score_is_that_of_a_loop_over_masks() -> None:
    model = Model()
    found = ser_fiq(embedder(model), Memory(), PHOTOS[:2], batch=2, num_passes=5, seed=3)
    masks = (np.random.RandomState(3).random_sample((5, 3 * SIDE * SIDE)) >= 0.5) * 2.0
    neck = model.neck
    for photo, score in zip(PHOTOS, found, strict=False):
        pixels = torch.from_numpy(Memory().load(photo)).permute(2, 0, 1)[None].float() / 127.5 - 1
        values = neck.norm(pixels).flatten(1)
        with torch.no_grad():
            passes = [neck.embed_norm(neck.embed(values * torch.from_numpy(mask).float())) for mask in masks]
        unit = [(one / one.norm()).double().numpy() for one in passes]
        away = [np.linalg.norm(unit[i] - unit[j]) for i in range(5) for j in range(i)]
        assert score == pytest.approx(2 / (1 + math.exp(np.mean(away))), abs=1e-6)


def test_scores_do_not_depend_on_the_batch_and_the_model_is_left_as_it_was() -> None:
    model, done = Model(), list[int]()
    before = model(torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8))
    whole = ser_fiq(embedder(model), Memory(), PHOTOS, batch=7, num_passes=9, advance=done.append)
    assert ser_fiq(embedder(model), Memory(), PHOTOS, batch=2, num_passes=9) == pytest.approx(whole, abs=1e-6)
    assert ser_fiq(embedder(model), Memory(), PHOTOS, batch=7, num_passes=9, seed=1) != pytest.approx(whole, abs=1e-3)
    assert done == [7]
    assert isinstance(model.neck.dropout, nn.Dropout)
    assert not model.training
    assert torch.equal(model(torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8)), before)
    assert len(ser_fiq(embedder(model), Memory(), [], batch=2)) == 0


def test_a_model_without_dropout_has_no_score_and_says_so() -> None:
    assert why_not(embedder(Model())) is None
    reason = "the model was trained without dropout before its embedding"
    assert why_not(embedder(Model(dropout=0.0))) == reason
    assert why_not(embedder(Model("fc_bn_fc_bn"))) == reason
    assert "it takes a model trained here" in str(why_not(embedder(nn.Flatten())))
    plain = Embedder(lambda images: images.float().flatten(1), SIDE, torch.device("cpu"), "plain")
    assert "it takes a model trained here" in str(why_not(plain))


def test_the_start_threshold_rejects_a_twentieth() -> None:
    distances = np.arange(1.0, 41.0)
    assert start_threshold(distances) == 39.0  # 39 and 40 are not below it
    assert start_threshold(np.arange(1.0, 42.0)) == 39.0  # of 41, 3
    assert start_threshold(np.array([0.5])) == 0.5
    with pytest.raises(UserError, match="no same pairs"):
        start_threshold(np.empty(0))


def scored_pairs(distances: list[float]) -> tuple[PairList, Embeddings]:
    """Same pairs of people 0, 1, … at these squared distances, and a different pair."""
    photos, vectors = [], []
    for number, distance in enumerate(distances):
        angle = math.acos(1 - distance / 2)
        photos += [Photo(f"p{number:02d}", 1), Photo(f"p{number:02d}", 2)]
        vectors += [[1.0, 0.0], [math.cos(angle), math.sin(angle)]]
    pairs = [Pair(photos[2 * n], photos[2 * n + 1], n % 2) for n in range(len(distances))]
    listed = PairList([*pairs, Pair(photos[0], photos[-1], 0)], 2)
    return listed, Embeddings(photos, np.array(vectors), {}, np.arange(1.0, len(photos) + 1))


def test_norms_that_foresee_the_failing_pair_leave_the_least_area() -> None:
    # Norms grow with the number, so the first pair has the worst photos; it is the one that fails.
    pairs, found = scored_pairs([3.0] + [0.1] * 19)
    scored = score_embeddings(found, pairs, 40)
    section = measure_quality(embedder(Model(dropout=0.0)), Memory(), found, scored, batch=4)
    assert (section.num_same, section.start_fnmr) == (20, 0.05)
    norm = section.measures["norm"]
    assert (norm.rejected[:2], norm.fnmr[:2]) == ([0.0, 0.05], [0.05, 0.0])
    assert norm.area == pytest.approx(section.least_area) == pytest.approx(0.05 * 0.05)
    assert section.area_of_chance == pytest.approx(0.05 * 0.2)
    assert section.left_out == {"ser_fiq": "the model was trained without dropout before its embedding"}


def test_lengths_that_differ_by_rounding_alone_are_no_measure() -> None:
    pairs, found = scored_pairs([3.0, 0.1, 0.1])
    scored = score_embeddings(found, pairs, 6)

    def measured(norms: np.ndarray) -> dict[str, str]:
        with_norms = Embeddings(found.photos, found.vectors, {}, norms)
        return measure_quality(embedder(Model()), Memory(), with_norms, scored, batch=4).left_out

    rounding = 3.0 + np.random.default_rng(0).uniform(-1e-6, 1e-6, 6)
    assert measured(rounding) == {"norm": "the embeddings all have the same length"}
    assert measured(rounding + np.arange(6) * 1e-3) == {}


def test_the_protocol_says_what_is_really_rejected() -> None:
    # The two worst of twenty tie: one would be 5 %, both are rejected.
    pairs, found = scored_pairs([3.0, 3.0] + [0.1] * 18)
    section = reject_figures(score_embeddings(found, pairs, 40), {}, {})
    assert section.start_fnmr == 0.1
    assert (
        "at the threshold that rejects 10 % of all same pairs (at least 5 %: whole pairs, and ties)" in section.protocol
    )
    pairs, found = scored_pairs([3.0, 0.2, 0.1])
    section = reject_figures(score_embeddings(found, pairs, 6), {}, {})
    assert "rejects 33.3 % of all same pairs (at least 5 %: whole pairs, and ties)" in section.protocol


def test_both_measures_and_unknown_norms() -> None:
    pairs, found = scored_pairs([3.0, 0.1, 0.1])
    scored = score_embeddings(found, pairs, 6)
    assert same_pair_photos(scored) == found.photos
    both = measure_quality(embedder(Model()), Memory(), found, scored, batch=4)
    assert set(both.measures) == {"norm", "ser_fiq"}
    assert both.left_out == {}
    neither = measure_quality(
        embedder(Model(dropout=0.0)), Memory(), Embeddings(found.photos, found.vectors, {}), scored, batch=4
    )
    assert neither.measures == {}
    assert set(neither.left_out) == {"norm", "ser_fiq"}


def test_long_curves_are_thinned_and_areas_are_not() -> None:
    pairs, found = scored_pairs([0.1 + n / 1000 for n in range(900)])
    scored = score_embeddings(found, pairs, 1800)
    worth = {photo: 1.0 / (1 + number // 2) for number, photo in enumerate(found.photos)}
    figures = reject_figures(scored, {"right": worth}, {}).measures["right"]
    assert len(figures.rejected) == 400
    assert (figures.rejected[0], figures.rejected[-1]) == (0.0, pytest.approx(899 / 900))
    # Pairs at the largest distances go first: all 45 that fail.
    section = reject_figures(scored, {"right": worth}, {})
    assert section.measures["right"].area == pytest.approx(section.least_area)


def test_norms_are_lengths_before_scaling() -> None:
    def embed(images: torch.Tensor) -> torch.Tensor:
        return images.float().flatten(1)

    plain = Embedder(embed, SIDE, torch.device("cpu"), "plain")
    found = extract_embeddings(plain, Memory(), PHOTOS[:3], batch=2, flip=True)
    assert found.norms is not None
    for photo, norm in zip(PHOTOS, found.norms, strict=False):
        crop = Memory().load(photo).astype(float)
        assert norm == pytest.approx(np.linalg.norm(crop + crop[:, ::-1]))
    none = extract_embeddings(plain, Memory(), [], batch=2)
    assert none.norms is not None
    assert none.norms.shape == (0,)
