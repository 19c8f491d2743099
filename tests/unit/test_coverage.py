"""The proof of exactly-once finds what it is meant to find."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from typer.testing import CliRunner

from pipeline.data.coverage import check_coverage
from pipeline.data.manifest import SplitIndex, open_dataset
from pipeline.data.order import PlainOrder
from preprocess.cli import app
from tests.datasets import make_dataset


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data"), num_samples=83, num_identities=5, crop_px=16)


class Twisted(PlainOrder):
    """Gives one row in another's place."""

    def rows(self, start: int, count: int) -> npt.NDArray[np.int64]:
        rows = super().rows(start, count)
        return np.where(rows == 7, 11, rows)


def cover(split: SplitIndex, order: PlainOrder) -> tuple[int, int, int]:
    read: list[int] = []
    found = check_coverage(split, order, global_batch=24, local_batch=6, ranks=3, workers=2, advance=read.append)
    assert sum(read) == len(split)
    return found.num_missing, found.num_repeated, len(found.bad_samples)


def test_a_sound_order_and_a_twisted_one(data: Path) -> None:
    split = open_dataset(data).split("train")
    assert cover(split, PlainOrder.create(split.digest, len(split), 3)) == (0, 0, 0)
    twisted = Twisted(len(split), PlainOrder.create(split.digest, len(split), 3).key)
    assert cover(split, twisted) == (1, 1, 0)


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["verify", *arguments, "--coverage"], env={"COLUMNS": "40"})
    return result.exit_code, result.output


def test_the_command_says_of_each_split_what_it_saw(tmp_path: Path) -> None:
    photos = make_dataset(tmp_path, num_samples=83, num_identities=5, crop_px=16).with_name("photos")
    data = tmp_path / "set [bold]1[/bold]"
    command = ["shard", str(photos), str(data), "--already-aligned", "--size", "16", "--val-identities", "0.2"]
    assert CliRunner().invoke(app, command).exit_code == 0
    code, text = run(str(data), "--ranks", "3", "--local-batch", "8")
    assert code == 0
    num_val = open_dataset(data).info.splits["val"].num_samples
    num_train = 83 - num_val
    lines = text.splitlines()  # whole ones, as every command's, however narrow the terminal
    for split, photos_of_it, batch in (("train", num_train, 48), ("val", num_val, num_val // 8 * 8)):
        said = f"an epoch of {photos_of_it} photos in batches of {batch}, 3 then 4 ranks: each exactly once"
        assert f"{data} ({split}): {said}" in lines


def test_the_command_names_what_cannot_be_read(tmp_path: Path) -> None:
    data = make_dataset(tmp_path, num_samples=40, num_identities=4, crop_px=16)
    split = open_dataset(data).split("train")
    with open(split.shards[0], "r+b") as tar:
        tar.seek(int(split.jpg_offset[5]) + 200)
        tar.write(b"damage")
    code, text = run(str(data))
    assert code == 1
    assert f"sample {split.sample_id[5]} of train/train-000000.tar: crc_mismatch" in text
    assert "each exactly once, 1 unreadable" in text


def test_an_order_that_leaves_some_out_is_not_sound(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = PlainOrder.rows

    def twisted(order: PlainOrder, start: int, count: int) -> npt.NDArray[np.int64]:
        found = rows(order, start, count)
        return np.where(found == 7, 11, found)

    monkeypatch.setattr(PlainOrder, "rows", twisted)
    code, text = run(str(data))
    assert code == 1
    assert "1 never, 1 twice" in text
