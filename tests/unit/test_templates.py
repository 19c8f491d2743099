"""Templates: pooling by hand and against loops, pairs by id, protocol files and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.errors import UserError
from pipeline.evaluate import templates as t
from pipeline.evaluate import verification as v

X, Y = [1.0, 0.0], [0.0, 1.0]


def direction(x: float, y: float) -> list[float]:
    return (np.array([x, y]) / np.hypot(x, y)).tolist()


def test_pooling_by_hand() -> None:
    """Template 9: two frames of a video that look along x, one photo along y. Template 4: one photo."""
    embeddings = np.array([X, Y, X, Y])
    template, medium = np.array([9, 4, 9, 9]), np.array([7, 7, 7, 8])
    plain = t.pool(embeddings, template)
    assert plain.ids.tolist() == [4, 9]
    assert plain.vectors == pytest.approx(np.array([Y, direction(2, 1)]))
    assert t.pool(embeddings, template, medium).vectors[1] == pytest.approx(direction(1, 1))
    weight = np.array([0.5, 3.0, 0.1, 0.9])
    assert t.pool(embeddings, template, weight=weight).vectors[1] == pytest.approx(direction(0.6, 0.9))
    # Mean within the video first, of photos times their weights: 0.3 along x.
    pooled = t.pool(embeddings, template, medium, weight)
    assert pooled.vectors == pytest.approx(np.array([Y, direction(0.3, 0.9)]))


def loop_pool(embeddings: np.ndarray, template: np.ndarray, medium: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """As `eval_ijbc` is described: means of weighted photos within media, their sum, scaled."""
    rows = []
    for one in np.unique(template):
        total = np.zeros(embeddings.shape[1])
        for part in np.unique(medium[template == one]):
            own = (template == one) & (medium == part)
            total += np.mean([w * f for w, f in zip(weight[own], embeddings[own], strict=True)], axis=0)
        rows.append(total / np.linalg.norm(total))
    return np.array(rows)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 40), rows=st.integers(1, 20))
def test_pooling_equals_the_loop_in_any_blocks(seed: int, count: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    embeddings = rng.standard_normal((count, 6))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    template, medium = rng.integers(0, 8, count) * 3, rng.integers(-2, 3, count)
    weight = rng.random(count) + 0.1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(t, "_ROWS", rows)
        found = t.pool(embeddings, template, medium, weight)
    assert found.ids.tolist() == np.unique(template).tolist()
    assert found.vectors == pytest.approx(loop_pool(embeddings, template, medium, weight), abs=1e-6)


def test_pairs_of_templates_by_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(t, "_PAIRS", 2)
    found = t.Templates(np.array([4, 9, 20]), np.array([X, Y, direction(3, 4)], np.float32))
    scores = t.pair_scores(found, np.array([4, 4, 20, 9, 9]), np.array([4, 9, 4, 20, 9]))
    assert scores.tolist() == pytest.approx([1.0, 0.0, 0.6, 0.8, 1.0])
    assert v.squared_distance(scores).tolist() == pytest.approx([0.0, 2.0, 0.8, 0.4, 0.0])
    assert t.pair_scores(found, np.array([], np.int64), np.array([], np.int64)).tolist() == []
    for wanted in (3, 5, 21):
        message = f"pairs: 1 of 2 name a template that is not there, first {wanted}"
        with pytest.raises(UserError, match=message):
            t.pair_scores(found, np.array([4, wanted]), np.array([4, 4]))
    nothing = t.pool(np.empty((0, 2)), np.array([], np.int64), np.array([], np.int64))
    assert nothing.vectors.shape == (0, 2)
    with pytest.raises(UserError, match="1 of 1 name a template that is not there"):
        t.pair_scores(nothing, np.array([4]), np.array([4]))


def test_templates_without_direction_are_named() -> None:
    embeddings = np.array([X, [-1.0, 0.0], Y])
    template = np.array([3, 3, 5])
    with pytest.raises(UserError, match="1 of 2 have no direction, the first 3"):
        t.pool(embeddings, template)
    with pytest.raises(UserError, match="1 of 2 have no direction, the first 5"):
        t.pool(embeddings, template, weight=np.array([1.0, 0.5, 0.0]))
    with pytest.raises(UserError, match="1 of 2 have no direction, the first 3"):
        t.pool(np.array([X, [np.nan, 0.0], Y]), template)
    for weight in ([1.0, np.nan, 1.0], [1.0, -0.1, 1.0]):
        with pytest.raises(UserError, match="weights: 1 of 3 are not finite or negative"):
            t.pool(embeddings, template, weight=np.array(weight))


def test_protocol_files(tmp_path: Path) -> None:
    faces = tmp_path / "ijbc_face_tid_mid.txt"
    faces.write_text('1.jpg 1 69544\n2.jpg 1 69544\n"3.jpg 12 5\n')
    found = t.read_faces(faces)
    assert found.name == ["1.jpg", "2.jpg", '"3.jpg']
    assert (found.template.tolist(), found.medium.tolist()) == ([1, 1, 12], [69544, 69544, 5])
    pairs = tmp_path / "ijbc_template_pair_label.txt"
    pairs.write_text("1 12 0\n1 1 1\n")
    listed = t.read_template_pairs(pairs)
    assert (listed.left.tolist(), listed.right.tolist(), listed.same.tolist()) == ([1, 1], [12, 1], [False, True])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 2 1\n1 2\n", r"list.txt:2: '1 2'; expected `LEFT RIGHT LABEL`, single spaces"),
        ("1 2 1\n1 x 0\n", r"list.txt:2: '1 x 0'; expected"),
        ("1  2 1\n", r"list.txt:1: '1  2 1'; expected"),
        ("1 2 1\n3 4 2\n", r"list.txt:2: label 2; expected 1 for the same person, 0 for two"),
        ("1 2 1.0\n", r"list.txt:1: '1 2 1.0'; expected"),
        ("1 2 99999999999999999999\n", r"list.txt: .*; expected lines `LEFT RIGHT LABEL`"),
        ("", r"list.txt: empty; expected lines `LEFT RIGHT LABEL`"),
    ],
)
def test_bad_protocol_files_are_named_by_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        t.read_template_pairs(tmp_path / "list.txt")
    assert "\n" not in str(caught.value)


def test_missing_protocol_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none.txt: unreadable \("):
        t.read_faces(tmp_path / "none.txt")
    with pytest.raises(UserError, match=r"unreadable \("):
        t.read_faces(tmp_path)
