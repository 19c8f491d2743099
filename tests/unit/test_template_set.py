"""Template pairs from photos to figures, figures within groups, searches among strangers: against hand-made ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.config.errors import UserError
from pipeline.evaluate import identification, templates
from pipeline.evaluate.by_group import figures_by_group
from pipeline.evaluate.distractors import distractors_chart, search_among
from pipeline.evaluate.embed import Embedder, Embeddings
from pipeline.evaluate.grouped_pairs import Groups
from pipeline.evaluate.pairs import Pair, PairList, Photo
from pipeline.evaluate.photos import Rejected
from pipeline.evaluate.report import headline_rate
from pipeline.evaluate.result import TarAtFar
from pipeline.evaluate.run import add_intervals, coverage_notes, measure, score_embeddings
from pipeline.evaluate.template_set import EmbeddedRows, RepresentedPairs, TemplateSet, embed_rows, score_templates
from pipeline.evaluate.template_weights import TemplateWeights

PHOTOS = [Photo("t", number, f"{number}.jpg") for number in range(6)]


def make_set(pairs: list[tuple[int, int, bool]]) -> TemplateSet:
    """Template 3 has photos 0 (medium 1), 1 and 2 (medium 2); template 5 photo 3; template 9 photos 4 and 5."""
    left, right, same = (np.array(side) for side in zip(*pairs, strict=True))
    return TemplateSet(
        photos=PHOTOS,
        template=np.array([3, 3, 3, 5, 9, 9]),
        medium=np.array([1, 2, 2, 1, 4, 4]),
        detector_score=np.array([0.5, 1.0, 1.0, 1.0, 1.0, 0.0]),
        pairs=templates.TemplatePairs(left, right, same),
    )


# Axes of the plane: photo 0 along x, 1 and 2 along y, 3 along x, 4 along y, 5 along -y.
VECTORS = np.array([[1, 0], [0, 1], [0, 1], [1, 0], [0, 1], [0, -1]], np.float32)
NORMS = np.array([4.0, 1.0, 3.0, 1.0, 1.0, 0.5])


@pytest.mark.parametrize(
    ("weights", "three", "nine"),
    [
        # x from photo 0 alone, y the mean of 1 and 2; of template 9, y is (4 - 5) / 2.
        (TemplateWeights.norm, (4.0, 2.0), 1.0),
        (TemplateWeights.score, (0.5, 1.0), 1.0),
        (TemplateWeights.norm_score, (2.0, 2.0), 1.0),
    ],
)
def test_templates_are_pooled_by_hand(weights: TemplateWeights, three: tuple[float, float], nine: float) -> None:
    tests = make_set([(3, 5, True), (3, 9, False)])
    scored = score_templates(tests, EmbeddedRows(VECTORS, NORMS, {}), weights)
    x, y = np.array(three) / np.hypot(*three)
    assert scored.distances == pytest.approx([2 - 2 * x, 2 - 2 * y * nine], abs=1e-6)
    assert (scored.fold, scored.unit, scored.num_photos, scored.num_dropped) == (None, "template", 6, 0)
    assert [(str(pair.left), str(pair.right), pair.same) for pair in scored.pairs] == [
        ("0.jpg", "3.jpg", True),
        ("0.jpg", "4.jpg", False),
    ]


def test_without_weights_photos_that_cancel_are_refused() -> None:
    with pytest.raises(UserError, match="1 of 3 have no direction, the first 9"):
        score_templates(make_set([(3, 5, True)]), EmbeddedRows(VECTORS, NORMS, {}), TemplateWeights.none)


def test_missing_photos_leave_their_templates_and_pairs_of_empty_ones_are_dropped() -> None:
    tests = make_set([(3, 5, True), (9, 3, False), (5, 9, False)])
    missing = {PHOTOS[0]: "no such file", PHOTOS[3]: "truncated"}
    vectors, norms = VECTORS.copy(), NORMS.copy()
    vectors[[0, 3]], norms[[0, 3]] = 0.0, 0.0
    scored = score_templates(tests, EmbeddedRows(vectors, norms, missing), TemplateWeights.score)
    # Template 5 had one photo; template 3 now points along y, as 9 does.
    assert scored.distances == pytest.approx([0.0], abs=1e-6)
    assert (scored.num_dropped, scored.place.tolist(), scored.num_photos) == (2, [1], 4)
    assert str(scored.pairs[0].right) == "1.jpg"
    notes = coverage_notes(scored, PairList([], 0))
    assert notes[0] == "2 photos are missing from their templates (no such file: 1, truncated: 1)."
    assert notes[1].startswith("2 of 3 pairs were dropped because 2 photos are missing")
    with pytest.raises(UserError, match="1 of 1 name a template without a photo, first line 1"):
        score_templates(make_set([(3, 4, True)]), EmbeddedRows(VECTORS, NORMS, {}), TemplateWeights.score)


def test_figures_of_templates_have_no_folds_and_no_intervals() -> None:
    tests = make_set([(3, 5, True), (3, 9, False)])
    scored = score_templates(tests, EmbeddedRows(VECTORS, NORMS, {}), TemplateWeights.norm)
    figures = add_intervals(measure(scored, flip=True), scored, by_identity=False)
    assert (figures.accuracy, figures.intervals, figures.unit, figures.protocol) == (None, None, "template", "no folds")
    # The same pair lies nearer (x is larger than y): everything is in order.
    assert (figures.auc, figures.eer, figures.best_threshold.accuracy) == (1.0, 0.0, 1.0)
    assert headline_rate(figures) is None
    point = TarAtFar(tar=0.5, far=0.0, threshold=1.0, num_different_needed=30)
    refused = TarAtFar(tar=None, far=None, threshold=None, num_different_needed=30)
    for rates, expected in (
        ({"1e-1": point, "1e-2": point, "1e-3": refused}, "1e-2"),
        ({"1e-3": point, "1e-4": point, "1e-5": point}, "1e-4"),
    ):
        found = headline_rate(figures.model_copy(update={"tar_at_far": rates}))
        assert found is not None
        assert found[0] == expected


def test_represented_pairs_behave_as_a_list() -> None:
    pairs = RepresentedPairs(PHOTOS, np.array([0, 2, 4]), np.array([1, 3, 5]), np.array([True, False, True]))
    assert len(pairs) == 3
    assert pairs[1] == Pair(PHOTOS[2], PHOTOS[3], 0, False)
    assert list(pairs[1:]) == [pairs[1], pairs[2]]


class Shades:
    """Crops of one grey each, the photo's number; one photo is not there."""

    def load(self, photo: Photo) -> np.ndarray | Rejected:
        return Rejected("gone") if photo.number == 2 else np.full((8, 8, 3), 10 * photo.number + 1, np.uint8)


def embed_shade(images: torch.Tensor) -> torch.Tensor:
    """[B, 2]: the grey, and 1."""
    grey = images.float().mean((1, 2, 3))
    return torch.stack((grey, torch.ones_like(grey)), 1)


def test_rows_are_embedded_in_order_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.evaluate.template_set._PHOTOS", 4)
    embedder = Embedder(embed_shade, 8, torch.device("cpu"), "test")
    done: list[int] = []
    rows = embed_rows(embedder, Shades(), PHOTOS, batch=3, flip=True, advance=done.append)
    raw = 2.0 * np.array([[10 * n + 1, 1] for n in range(6)])
    assert sum(done) == 6
    assert rows.missing == {PHOTOS[2]: "gone"}
    assert rows.is_present.tolist() == [True, True, False, True, True, True]
    kept = [0, 1, 3, 4, 5]
    assert rows.norms[kept] == pytest.approx(np.linalg.norm(raw[kept], axis=1))
    assert rows.vectors.dtype == np.float32
    np.testing.assert_allclose(rows.vectors[kept] * rows.norms[kept, None], raw[kept], rtol=1e-6)
    assert not rows.vectors[2].any()
    with pytest.raises(UserError, match=r"none of 1 can be used, the first 2.jpg \(gone\)"):
        embed_rows(embedder, Shades(), [PHOTOS[2]], batch=3, flip=True, advance=done.append)


def line_embeddings(names: list[str], degrees: list[float]) -> Embeddings:
    """One photo a name, at angles of the unit circle."""
    angle = np.deg2rad(degrees)
    counts: dict[str, int] = {}
    photos = [Photo(name, counts.setdefault(name, 0) + 1) for name in names]
    photos = [photo._replace(number=number + 1) for number, photo in enumerate(photos)]
    return Embeddings(photos, np.stack((np.cos(angle), np.sin(angle)), 1), {})


def test_figures_within_groups_by_hand() -> None:
    found = line_embeddings(["a", "a", "b", "c", "c"], [0, 10, 50, 100, 160])
    a1, a2, b, c1, c2 = found.photos
    gone = Photo("z", 1)
    pairs = PairList(
        [Pair(a1, a2, 0), Pair(gone, a1, 0), Pair(a1, b, 0), Pair(c1, c2, 1), Pair(a2, c1, 1), Pair(b, a2, 1)], 2
    )
    found.missing[gone] = "no such file"
    groups = {
        "race": Groups(["x", "x", "x", "y", "x", "x"], ["x", "x", "x", "y", "y", "x"]),
        "site": Groups([""] * 6, [""] * 6),
    }
    scored = score_embeddings(found, pairs, 6)
    assert scored.place.tolist() == [0, 2, 3, 4, 5]
    by_group = figures_by_group(scored, groups)
    assert by_group["site"] == []
    x, y = by_group["race"]
    # Within x: a1-a2 (same, 10 degrees), a1-b (50), b-a2 (40); the pair of x and y belongs to neither.
    assert (x.group, x.num_pairs, x.num_same, x.num_different, x.auc, x.eer) == ("x", 3, 1, 2, 1.0, 0.0)
    # Fold 1 (b-a2, different) is judged at the first threshold that is right on fold 0, 0.04 (10 degrees: 0.0304);
    # fold 0 at 0, where all of fold 1 is right: its same pair is then wrong.
    assert (x.accuracy, x.accuracy_std) == (0.75, 0.25)
    assert x.tar_at_far is not None
    assert x.tar_at_far["1e-1"].tar is None
    # One same pair in one fold: neither accuracy nor rates.
    assert (y.num_pairs, y.accuracy, y.accuracy_std, y.auc, y.eer, y.tar_at_far) == (1, None, None, None, None, None)


def test_a_group_with_one_kind_of_pairs_has_no_accuracy() -> None:
    found = line_embeddings(["a", "b", "c", "d"], [0, 50, 100, 150])
    a, b, c, d = found.photos
    scored = score_embeddings(found, PairList([Pair(a, b, 0), Pair(c, d, 1)], 2), 4)
    # Whoever calls all photos different would be right every time.
    (x,) = figures_by_group(scored, {"race": Groups(["x", "x"], ["x", "x"])})["race"]
    assert (x.num_same, x.num_different, x.accuracy, x.accuracy_std) == (0, 2, None, None)


def test_rank_one_among_distractors_by_hand() -> None:
    found = line_embeddings(["a", "a", "b", "b"], [0, 20, 100, 130])
    # Of twelve strangers only the eleventh is nearer to a photo (b at 130 degrees) than its mate is, at 100.
    angles = [200.0 + n for n in range(10)] + [150.0, 300.0]
    vectors = line_embeddings([f"s{n}" for n in range(12)], angles).vectors.astype(np.float32)
    vectors = np.insert(vectors, 3, 0.0, axis=0)
    norms = np.ones(13)
    norms[3] = 0.0
    figures = search_among(found, EmbeddedRows(vectors, norms, {Photo("m", 1): "gone"}), "strangers", 2)
    assert (figures.num_distractors, figures.num_missing, figures.num_own) == (12, 1, 2)
    assert figures.rank1 == {"10": 1.0, "12": 0.75}
    present = vectors[norms > 0]
    assert figures.rank1 == {
        str(n): rate
        for n, rate in identification.rank1_among_distractors(
            found.vectors, np.array([0, 0, 1, 1]), present, [10, 12]
        ).items()
    }
    chart = distractors_chart(figures)
    assert ">10<" in chart
    assert ">100<" in chart
    few = search_among(found, EmbeddedRows(vectors[:1], norms[:1], {}), "strangers", 0)
    assert few.rank1 == {"1": 1.0}
    assert "<path" in distractors_chart(few)
