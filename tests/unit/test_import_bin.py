"""Verification sets become folders and pair lists that evaluation reads."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from pipeline.config.errors import UserError
from pipeline.evaluate.pairs import read_pairs
from preprocess.import_bin import write_pair_folder
from preprocess.sources import read_source


def write_bin(path: Path, same: list[bool]) -> Path:
    images = [b"\xff\xd8\xff%d" % number for number in range(2 * len(same))]
    path.write_bytes(pickle.dumps((images, same), 4))
    return path


def content(folder: Path, photo: object) -> bytes:
    name = str(photo)
    return (folder / name[:-5] / f"{name}.jpg").read_bytes()


@pytest.mark.parametrize("order", [[True, True, False, False], [False, True, False, True]])
def test_ten_folds_in_the_files_order(tmp_path: Path, order: list[bool]) -> None:
    same = order * 10
    count, notes = write_pair_folder(write_bin(tmp_path / "x.bin", same), tmp_path / "x")
    assert (count, notes) == (40, [])
    pairs = read_pairs(tmp_path / "x" / "pairs.txt")
    assert pairs.num_folds == 10
    found = [
        (content(tmp_path / "x", pair.left), content(tmp_path / "x", pair.right), pair.same, pair.fold)
        for pair in pairs.pairs
    ]
    expected = [
        (b"\xff\xd8\xff%d" % (2 * i), b"\xff\xd8\xff%d" % (2 * i + 1), same[i], i // 4) for i in range(len(same))
    ]
    assert sorted(found) == sorted(expected)
    _, listing, notes = read_source(tmp_path / "x")
    assert len(listing) == 80
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_folds_that_are_not_balanced_become_a_block(tmp_path: Path) -> None:
    same = [True] * 20 + [False] * 20
    _, notes = write_pair_folder(write_bin(tmp_path / "x.bin", same), tmp_path / "x")
    assert notes == ["the file's ten parts do not hold as many pairs of each kind: one block of pairs, dealt into folds evenly"]  # fmt: skip  # noqa: E501
    pairs = read_pairs(tmp_path / "x" / "pairs.txt")
    assert (pairs.num_folds, [pair.same for pair in pairs.pairs]) == (1, same)


def test_more_of_one_kind(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="2 same and 1 different pairs; expected as many of each kind"):
        write_pair_folder(write_bin(tmp_path / "x.bin", [True, False, True]), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_folder_that_exists(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(UserError, match="exists already"):
        write_pair_folder(write_bin(tmp_path / "x.bin", [True, False]), tmp_path / "x")


def test_what_an_interrupted_run_left_is_replaced(tmp_path: Path) -> None:
    left = tmp_path / ".x.import.unfinished" / "pair_99999"
    left.mkdir(parents=True)
    write_pair_folder(write_bin(tmp_path / "x.bin", [True, False]), tmp_path / "x")
    assert sorted(path.name for path in (tmp_path / "x").iterdir()) == [
        "pair_00000",
        "pair_00001_left",
        "pair_00001_right",
        "pairs.txt",
    ]
