"""Pair lists: the official format, its faults, and drawing from a data set."""

from __future__ import annotations

import hashlib
import os
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.errors import UserError
from pipeline.evaluate.pairs import (
    NUM_FOLDS,
    Pair,
    PairList,
    Photo,
    _pairs_of,
    deal_into_folds,
    draw_pairs,
    format_pairs,
    parse_pairs,
    read_pairs,
    write_pairs,
)

OFFICIAL = "2\t1\nAnn_Lee\t1\t2\nAnn_Lee\t1\tBo\t3\nBo\t3\t1\nCy\t1\tAnn_Lee\t2\n"


def test_official_format() -> None:
    pairs = parse_pairs(OFFICIAL, "pairs.txt")
    assert pairs.num_folds == 2
    assert pairs.pairs == [
        Pair(Photo("Ann_Lee", 1), Photo("Ann_Lee", 2), 0),
        Pair(Photo("Ann_Lee", 1), Photo("Bo", 3), 0),
        Pair(Photo("Bo", 3), Photo("Bo", 1), 1),
        Pair(Photo("Cy", 1), Photo("Ann_Lee", 2), 1),
    ]
    assert [pair.same for pair in pairs.pairs] == [True, False, True, False]
    assert str(pairs.pairs[0].left) == "Ann_Lee_0001"
    assert pairs.photos() == [Photo("Ann_Lee", 1), Photo("Ann_Lee", 2), Photo("Bo", 3), Photo("Bo", 1), Photo("Cy", 1)]
    assert format_pairs(pairs) == OFFICIAL


def test_one_number_is_one_block() -> None:
    pairs = parse_pairs("2\nA\t1\t2\nB\t1\t2\nA\t1\tB\t1\nA\t2\tB\t2\n", "dev.txt")
    assert pairs.num_folds == 1
    assert [pair.same for pair in pairs.pairs] == [True, True, False, False]


def test_spaces_windows_lines_and_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "pairs.txt"
    path.write_bytes("\ufeff1\t1\r\nJean Luc\t1\t2\r\nJean Luc\t1\tÉva\t3\r\n\r\n".encode())
    pairs = read_pairs(path)
    assert pairs.pairs[1] == Pair(Photo("Jean Luc", 1), Photo("Éva", 3), 0)
    assert parse_pairs("1 1\nA 1 2\nA 1 B 1\n", "spaces").num_folds == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"^p: empty"),
        ("Ann\t1\t2\n", r"^p:1: 'Ann'; expected a whole number from 1"),
        ("1\t1\t1\n", r"^p:1: 3 numbers"),
        ("1\t0\n", r"^p:1: '0'"),
        ("1\t1\nA\t1\t2\n", r"^p: 1 pairs; expected 2"),
        ("1\t1\nA\t1\t2\nA\t1\t2\n", r"^p:3: 3 fields; expected a different pair"),
        ("1\t1\nA\t1\tB\t2\nA\t1\tB\t2\n", r"^p:2: 4 fields; expected a same pair"),
        ("1\t1\nA\t1\tx\nA\t1\tB\t2\n", r"^p:2: 'x'; expected a whole number"),
        ("1\t1\nA\t1\t-2\nA\t1\tB\t2\n", r"^p:2: '-2'"),
        ("1\t1\nA\t1\t²\nA\t1\tB\t2\n", r"^p:2: '²'"),
        ("1\t1\nA\t1\t1\nA\t1\tB\t2\n", r"^p:2: A_0001 is paired with itself"),
        ("1\t1\n\nA\t1\t2\nA\t1\tA\t2\n", r"^p:4: both photos are of 'A'"),
    ],
)
def test_malformed_lists_are_named_by_line(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_pairs(text, "p")


def test_unreadable_lists(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        read_pairs(tmp_path / "none.txt")
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(UserError, match="not UTF-8 text"):
        read_pairs(tmp_path / "photo.jpg")


def test_names_that_the_format_cannot_hold() -> None:
    for name in ("a\tb", "a\nb", " a", ""):
        with pytest.raises(UserError, match="cannot hold"):
            format_pairs(PairList([Pair(Photo(name, 1), Photo(name, 2), 0), Pair(Photo(name, 1), Photo("b", 1), 0)], 1))


def test_dealing_keeps_the_official_order() -> None:
    same = [Pair(Photo("A", 1), Photo("A", number), 0) for number in range(2, 25)]
    different = [Pair(Photo("A", 1), Photo("B", number), 0) for number in range(1, 22)]
    dealt = deal_into_folds(same + different)
    assert len(dealt.pairs) == 40
    for fold in range(NUM_FOLDS):
        part = dealt.pairs[4 * fold : 4 * fold + 4]
        assert [pair.fold for pair in part] == [fold] * 4
        assert [pair.same for pair in part] == [True, True, False, False]
    with pytest.raises(UserError, match="9 same and 21 different"):
        deal_into_folds(same[:9] + different)


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=15), seed=st.integers(0, 1000), limit=st.integers(1, 200)
)
def test_drawn_pairs_are_balanced_and_unique(counts: list[int], seed: int, limit: int) -> None:
    photos = {f"p{number}": list(range(1, count + 1)) for number, count in enumerate(counts)}
    num_same = sum(n * (n - 1) // 2 for n in counts)
    num_different = (sum(counts) ** 2 - sum(n * n for n in counts)) // 2
    expected = min(limit, num_same, num_different) // 10 * 10
    if expected == 0:
        with pytest.raises(UserError, match="at least 10 of each"):
            draw_pairs(photos, "data", seed, limit)
        return
    drawn = draw_pairs(photos, "data", seed, limit)
    assert Counter(pair.same for pair in drawn.pairs) == {True: expected, False: expected}
    assert len({frozenset((pair.left, pair.right)) for pair in drawn.pairs}) == 2 * expected
    assert all(photo.number in photos[photo.identity] for photo in drawn.photos())
    assert parse_pairs(format_pairs(drawn), "drawn") == drawn
    assert draw_pairs(dict(reversed(photos.items())), "data", seed, limit) == drawn


def test_identities_take_turns_and_the_stream_is_frozen() -> None:
    photos = {"many": list(range(1, 61)), **{f"p{number:02d}": [1, 2, 3] for number in range(20)}}
    drawn = draw_pairs(photos, "data", 0, 60)
    by_identity = Counter(pair.left.identity for pair in drawn.pairs if pair.same)
    assert max(by_identity.values()) <= 3
    assert all(len({pair.left.identity for pair in drawn.pairs if pair.fold == fold}) > 3 for fold in range(10))
    # A list that was drawn once must be drawn again on any machine: pinned.
    text = format_pairs(drawn)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "79cb9b909515fb1f", text
    assert draw_pairs(photos, "data", 1, 60) != drawn


def test_drawing_from_many_people_takes_little_memory() -> None:
    photos = {f"p{number:05d}": list(range(1, 65)) for number in range(5000)} | {"many": list(range(1, 10**6))}
    tracemalloc.start()
    try:
        drawn = draw_pairs(photos, "data")
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(drawn.pairs) == 6000
    assert len({pair.left.identity for pair in drawn.pairs if pair.same}) == 3000
    # All same pairs of these people would take 0.6 GB.
    assert peak_bytes < 20e6, peak_bytes


def test_every_same_pair_of_a_person_is_reached_and_equally_likely() -> None:
    first: Counter[tuple[int, int]] = Counter()
    for seed in range(2000):
        drawn = list(_pairs_of("a", [1, 2, 5, 7], np.random.RandomState(seed)))
        assert len({(pair.left.number, pair.right.number) for pair in drawn}) == len(drawn) == 6
        first[drawn[0].left.number, drawn[0].right.number] += 1
    assert set(first) == {(1, 2), (1, 5), (1, 7), (2, 5), (2, 7), (5, 7)}
    assert all(250 < count < 420 for count in first.values())  # 333 expected, five standard deviations


def test_written_list_reads_back(tmp_path: Path) -> None:
    drawn = draw_pairs({f"p{number}": [1, 2, 3] for number in range(30)}, "data", 0, 50)
    write_pairs(tmp_path / "pairs.txt", drawn)
    assert (tmp_path / "pairs.txt").read_text().startswith("10\t5\n")
    assert read_pairs(tmp_path / "pairs.txt") == drawn
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.txt"]


def test_real_list() -> None:
    root = os.environ.get("FACEMILL_TEST_DATA")
    if not root:
        pytest.skip("FACEMILL_TEST_DATA is not set")
    path = Path(root) / "lfw" / "pairs.txt"
    pairs = read_pairs(path)
    assert Counter(pair.same for pair in pairs.pairs) == {True: 300, False: 300}
    assert len(pairs.photos()) == 807
    assert format_pairs(pairs).split() == path.read_text().split()
