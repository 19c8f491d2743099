"""Rates of groups: by hand, intervals against published values, worst and best; the CSV file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.errors import UserError
from pipeline.evaluate import fairness
from pipeline.evaluate.grouped_pairs import read_grouped_pairs, ungrouped_notes
from pipeline.evaluate.pairs import Photo


def test_wilson_by_hand() -> None:
    # Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    for errors, trials, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611)):
        found = fairness.wilson(errors, trials)
        assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)
    assert fairness.wilson(1, 29).high == pytest.approx(0.1718, abs=5e-5)
    assert fairness.wilson(20, 20).high == 1.0
    assert fairness.wilson(5, 10, level=0.5).high < fairness.wilson(5, 10).high
    with pytest.raises(UserError, match="trials: none"):
        fairness.wilson(0, 0)


def test_rates_by_hand() -> None:
    distances = np.array([0.5, 1.5, 0.9, 1.0, 2.0, 0.5, 0.5])
    same = np.array([True, True, True, False, False, False, False])
    left = ["b", "b", "a", "b", "b", "a", "b"]
    right = ["b", "b", "a", "b", "a", "b", "a"]
    found = fairness.group_rates(distances, same, left, right, 1.0)
    assert [one.groups for one in found] == [("a", "a"), ("a", "b"), ("b", "b")]
    a, across, b = found
    # A pair at the threshold is not accepted.
    assert (a.fmr, a.fnmr and (a.fnmr.errors, a.fnmr.trials)) == (None, (0, 1))
    assert across.fnmr is None
    assert across.fmr is not None
    assert (across.fmr.errors, across.fmr.trials, across.fmr.value) == (2, 3, 2 / 3)
    assert (b.fmr and b.fmr.value, b.fnmr and b.fnmr.value) == (0.0, 0.5)
    assert across.fmr.method == "wilson"
    assert across.fmr.interval == fairness.wilson(2, 3)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.sampled_from("abc"), st.sampled_from("abc")), min_size=1)
)
def test_rates_equal_the_loop(pairs: list[tuple[int, bool, str, str]]) -> None:
    distances, same, left, right = (list(column) for column in zip(*pairs, strict=True))
    found = fairness.group_rates(np.array(distances, float), np.array(same), left, right, 2.0)
    expected = {}
    for distance, kind, one, other in pairs:
        cell = expected.setdefault(tuple(sorted((one, other))), {True: [], False: []})
        cell[kind].append((distance < 2.0) != kind)
    assert [one.groups for one in found] == sorted(expected)
    for one in found:
        for rate, kind in ((one.fmr, False), (one.fnmr, True)):
            errors = expected[one.groups][kind]
            assert (rate is None) == (not errors)
            assert rate is None or (rate.errors, rate.trials) == (sum(errors), len(errors))


def test_people_are_resampled_within_their_group() -> None:
    """One person of group a fails in all of 30 pairs, four in none: the pairs say far less than 150 would."""
    person = np.repeat(np.arange(5), 30)
    distances = np.where(person == 0, 2.0, 0.5)
    same = np.ones(150, bool)
    groups = ["a"] * 150
    wilson = fairness.group_rates(distances, same, groups, groups, 1.0)[0].fnmr
    people = fairness.group_rates(distances, same, groups, groups, 1.0, (person, person))[0].fnmr
    assert wilson is not None
    assert people is not None
    assert (wilson.value, people.value, people.method) == (0.2, 0.2, "bootstrap")
    assert people.interval.low == 0.0
    assert people.interval.high > wilson.interval.high + 0.2
    # Nothing to resample: no error at all.
    none = fairness.group_rates(distances, same, groups, groups, 3.0, (person, person))[0].fnmr
    assert none is not None
    assert (none.method, none.interval) == ("wilson", fairness.wilson(0, 150))


def test_people_who_give_nothing_to_resample_do_not_make_an_interval_without_width() -> None:
    distances = np.where(np.arange(20) < 5, 2.0, 0.5)
    groups = ["a"] * 20
    one, other = np.zeros(20, np.int64), np.ones(20, np.int64)
    # All pairs of one person; all of the same two; two people, of whom each has one error in ten.
    for left, right, same in ((one, one, True), (one, other, False), (np.arange(20) % 2, np.arange(20) % 2, True)):
        is_error = (np.arange(20) // 2 == 0) if (left != left[0]).any() else distances > 1.0
        scores = np.where(is_error == same, 2.0, 0.5)
        (found,) = fairness.group_rates(scores, np.full(20, same), groups, groups, 1.0, (left, right))
        rate = found.fnmr if same else found.fmr
        assert rate is not None
        assert (rate.method, rate.interval) == ("wilson", fairness.wilson(int(is_error.sum()), 20))


def rates(**values: tuple[float, int]) -> list[fairness.GroupRates]:
    made = []
    for name, (value, trials) in values.items():
        rate = fairness.Rate(round(value * trials), trials, value, fairness.Interval(0.0, 1.0), "wilson")
        made.append(fairness.GroupRates((name[0], name[1]), fmr=rate, fnmr=None))
    return made


def test_the_worst_and_the_best() -> None:
    found = fairness.disparity(rates(aa=(0.02, 100), ab=(0.08, 50), bb=(0.04, 100)), "fmr")
    assert found == fairness.Disparity(("a", "b"), 0.08, ("a", "a"), 0.02, pytest.approx(4.0))
    within = fairness.disparity(rates(aa=(0.02, 100), ab=(0.08, 50), bb=(0.04, 100)), "fmr", across=False)
    assert within is not None
    assert (within.worst, within.ratio) == (("b", "b"), pytest.approx(2.0))
    spotless = fairness.disparity(rates(aa=(0.0, 10), bb=(0.1, 10), cc=(0.0, 20), dd=(0.1, 30)), "fmr")
    assert spotless == fairness.Disparity(("d", "d"), 0.1, ("c", "c"), 0.0, None)
    assert fairness.disparity(rates(aa=(0.1, 10), bb=(0.1, 10)), "fnmr") is None
    assert fairness.disparity(rates(aa=(0.1, 10)), "fmr") is None
    assert fairness.disparity([], "fmr") is None


def test_users_mistakes() -> None:
    with pytest.raises(UserError, match="no pairs"):
        fairness.group_rates(np.empty(0), np.empty(0, bool), [], [], 1.0)
    with pytest.raises(UserError, match="1 are not finite"):
        fairness.group_rates(np.array([np.nan]), np.array([True]), ["a"], ["a"], 1.0)


def test_grouped_pairs(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text(
        "\ufeffleft_identity,left_number,right_identity,right_number,left_age,set,right_age,left\n"
        'Ann,1,Ann,4,young,A,old,x\n\n"Bo, B.",2,Ann,1,,B,young,y\n',
        encoding="utf-8",
    )
    found = read_grouped_pairs(path)
    assert [(pair.left, pair.right, pair.same) for pair in found.pairs.pairs] == [
        (Photo("Ann", 1), Photo("Ann", 4), True),
        (Photo("Bo, B.", 2), Photo("Ann", 1), False),
    ]
    assert found.pairs.num_folds == 1
    assert {name: (one.left, one.right) for name, one in found.groups.items()} == {
        "age": (["young", ""], ["old", "young"]),
        "set": (["A", "B"], ["A", "B"]),
        "left": (["x", "y"], ["x", "y"]),
    }


@pytest.mark.parametrize(
    ("header", "line", "message"),
    [
        ("left_identity,left_number,right_identity,g", "A,1,B,x", "column 'right_number' stands 0 times"),
        ("", "", "column 'left_identity' stands 0 times"),
        ("{},left_number,g", "A,1,B,2,1,x", "column 'left_number' stands 2 times"),
        ("{}", "A,1,B,2", "no column of groups"),
        ("{},left_age", "A,1,B,2,x", "column 'left_age' without 'right_age'"),
        ("{},right_age", "A,1,B,2,x", "column 'right_age' without 'left_age'"),
        ("{},g,g", "A,1,B,2,x,x", "group 'g' stands more than once"),
        ("{},age,left_age,right_age", "A,1,B,2,x,x,x", "group 'age' stands more than once"),
        ("{},g", "", "no pairs"),
        ("{},g", "A,1,B,2", r"pairs.csv:2: 4 fields; expected 5"),
        ("{},g", "A,1,B,0,x", r"pairs.csv:2: right_number '0'; expected a whole number from 1"),
        ("{},g", "A,x,B,1,x", r"pairs.csv:2: left_number 'x'"),
        ("{},g", ",1,B,1,x", r"pairs.csv:2: no left_identity"),
        ("{},g", "A,1,A,1,x", r"pairs.csv:2: A_0001 is paired with itself"),
    ],
)
def test_bad_grouped_pairs_are_named(tmp_path: Path, header: str, line: str, message: str) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text(header.format("left_identity,left_number,right_identity,right_number") + f"\n{line}\n")
    with pytest.raises(UserError, match=message) as caught:
        read_grouped_pairs(path)
    assert "\n" not in str(caught.value)


def test_pairs_without_a_group_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    header = "left_identity,left_number,right_identity,right_number,left_age,right_age,site"
    path.write_text(f"{header}\nA,1,A,2,,old,x\nA,1,B,1,old, ,x\nA,1,C,1,old,young,\nB,1,C,1,old,old,y\n")
    assert ungrouped_notes(read_grouped_pairs(path)) == [
        "Without a group in column 'age' there are 2 of 4 pairs, and in column 'site' 1: "
        "they count among all pairs only."
    ]
    path.write_text(f"{header}\nA,1,A,2,old,old,x\n")
    assert ungrouped_notes(read_grouped_pairs(path)) == []
    path.write_text(f"{header}\nA,1,A,2,old,,x\nA,1,A,3,,old,x\n")
    with pytest.raises(UserError, match="no pair with a group in column 'age'"):
        read_grouped_pairs(path)


def test_unreadable_grouped_pairs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unreadable \(No such file"):
        read_grouped_pairs(tmp_path / "none.csv")
    (tmp_path / "x.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not UTF-8 text"):
        read_grouped_pairs(tmp_path / "x.csv")
