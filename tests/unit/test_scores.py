"""Scores of pairs: written, read back, and joined pair by pair."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config.errors import UserError
from pipeline.evaluate.pairs import Pair, Photo
from pipeline.evaluate.scores import read_scores, write_scores
from pipeline.evaluate.side_by_side import common_pairs
from tests.evaluations import NUM_PAIRS, PAIRS, distances_of


def test_scores_come_back_as_they_were_written(tmp_path: Path) -> None:
    pairs = [
        Pair(Photo("A", 1), Photo("A", 2), 0),
        Pair(Photo("B", 1), Photo("A", 2), 3),
        Pair(Photo("B", 1), Photo("C", 1), 3),
    ]
    sha256 = write_scores(tmp_path / "named", pairs, np.array([0.1, 2.0, 4.0]), "abc")
    assert sha256 == hashlib.sha256((tmp_path / "named").read_bytes()).hexdigest()
    found = read_scores(tmp_path / "named")
    assert found.pairs_sha256 == "abc"
    assert found.table["left"].to_pylist() == ["A_0001", "B_0001", "B_0001"]
    assert found.table["right_identity"].to_pylist() == ["A", "A", "C"]
    assert found.same.tolist() == [True, False, False]
    assert found.fold.tolist() == [0, 3, 3]
    assert found.distances.tolist() == [0.1, 2.0, 4.0]
    assert [side.tolist() for side in found.people()] == [[0, 1, 1], [0, 0, 2]]
    write_scores(tmp_path / "unnamed", pairs, np.array([0.1, 2.0, 4.0]), "abc", has_identities=False)
    found = read_scores(tmp_path / "unnamed")
    assert found.table["left_identity"].to_pylist() == [None] * 3
    # without people, pairs are what is drawn: each is its own
    assert [side.tolist() for side in found.people()] == [[0, 1, 2], [0, 1, 2]]


def test_damaged_scores(tmp_path: Path) -> None:
    path = tmp_path / "scores.parquet"
    with pytest.raises(UserError, match=r"scores.parquet: cannot be read \(no such file\)"):
        read_scores(path)
    path.write_text("text")
    with pytest.raises(UserError, match=r"scores.parquet: cannot be read \("):
        read_scores(path)
    write_scores(path, PAIRS, distances_of(0.1), "abc")
    table = pq.read_table(path)

    def changed(name: str, values: list[object]) -> pa.Table:
        place = table.column_names.index(name)
        return table.set_column(place, table.schema.field(name), pa.array(values, table.schema.field(name).type))

    one_null = [None, *table["left_identity"].to_pylist()[1:]]
    for content, message in (
        (table.replace_schema_metadata(None), "schema version none; expected version 1"),
        (
            table.replace_schema_metadata({**table.schema.metadata, b"facemill.scores_schema_version": b"2"}),
            "version 2;",
        ),
        (table.drop_columns(["fold"]), "columns left, right"),
        (changed("squared_distance", [np.nan] * NUM_PAIRS), "600 of 600 are not finite"),
        (changed("squared_distance", [4.5] * NUM_PAIRS), "from 4.5 to 4.5; expected 0 to 4"),
        (changed("left_identity", one_null), "identities of some pairs only"),
    ):
        pq.write_table(content, path)
        with pytest.raises(UserError, match=message) as caught:
            read_scores(path)
        assert "\n" not in str(caught.value)


def test_pairs_that_a_model_lacks_are_left_out_for_all(tmp_path: Path) -> None:
    scores = []
    for name, kept in (("a", slice(2, None)), ("b", slice(0, 598)), ("c", slice(None))):
        write_scores(tmp_path / name, PAIRS[kept], distances_of(0.1)[kept], "abc")
        scores.append((tmp_path, read_scores(tmp_path / name)))
    found, num_left_out = common_pairs(scores)
    assert num_left_out == 4
    for one in found:
        assert one.table["left"].to_pylist() == [str(pair.left) for pair in PAIRS[2:598]]
        assert one.distances.tolist() == distances_of(0.1)[2:598].tolist()
    assert common_pairs(scores[2:])[1] == 0
    write_scores(tmp_path / "d", PAIRS[:1], distances_of(0.1)[:1], "abc")
    with pytest.raises(UserError, match="no pair in common with"):
        common_pairs([scores[0], (tmp_path, read_scores(tmp_path / "d"))])
    write_scores(tmp_path / "e", [pair._replace(fold=1) for pair in PAIRS], distances_of(0.1), "abc")
    with pytest.raises(UserError, match="other pairs, people or folds than"):
        common_pairs([scores[2], (tmp_path, read_scores(tmp_path / "e"))])


def test_a_pair_that_a_list_names_twice_is_two_pairs(tmp_path: Path) -> None:
    """One of them is another's first, the other its second: six rows, of which one model lacks two."""
    pairs = [PAIRS[place] for place in (0, 1, 0, 2, 1, 0)]
    kept = [place for place in range(6) if pairs[place] is not PAIRS[1]]
    distances = np.arange(6) / 10
    write_scores(tmp_path / "all", pairs, distances, "abc")
    write_scores(tmp_path / "some", [pairs[place] for place in kept], distances[kept], "abc")
    found, num_left_out = common_pairs([(tmp_path, read_scores(tmp_path / name)) for name in ("all", "some")])
    assert num_left_out == 2
    assert [one.distances.tolist() for one in found] == [[0.0, 0.2, 0.3, 0.5]] * 2
    write_scores(tmp_path / "none", [], np.empty(0), "abc", has_identities=False)
    with pytest.raises(UserError, match="no pair in common with"):
        common_pairs([(tmp_path, read_scores(tmp_path / name)) for name in ("all", "none")])
