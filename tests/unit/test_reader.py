"""Reading by row: checked bytes, or the reason why there are none."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.manifest import SplitIndex, open_dataset
from pipeline.data.reader import BadSample, Reader
from pipeline.data.store import local
from tests.datasets import make_dataset


@pytest.fixture
def split(tmp_path: Path) -> SplitIndex:
    root = make_dataset(tmp_path, num_samples=60, num_identities=7, crop_px=16, samples_per_shard=20)
    return open_dataset(root).split("train")


def expected_bytes(split: SplitIndex, row: int) -> bytes:
    content = split.shards[split.shard[row]].read_bytes()
    return content[split.jpg_offset[row] :][: split.jpg_size[row]]


def test_every_row_is_read_by_many_threads_with_few_descriptors(
    split: SplitIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_MAX_OPEN_SHARDS", 1)
    before = len(os.listdir("/proc/self/fd"))
    with ThreadPoolExecutor(4) as pool, Reader(split) as reader:
        rows = np.random.default_rng(0).permutation(np.tile(np.arange(60), 10)).tolist()
        for row, content in zip(rows, pool.map(reader.read, rows), strict=True):
            assert isinstance(content, bytes)
            assert bytes(content) == expected_bytes(split, row)
        assert len(os.listdir("/proc/self/fd")) <= before + 1
    assert len(os.listdir("/proc/self/fd")) == before


def test_rows_are_visited_in_their_order_on_disk(split: SplitIndex) -> None:
    with Reader(split) as reader:
        rows = np.random.default_rng(0).permutation(60)
        assert np.array_equal(rows[reader.by_place(rows)], np.arange(60))


@pytest.mark.parametrize("place", [0, 1, -1])
def test_a_flipped_bit_is_found(split: SplitIndex, place: int) -> None:
    row = 25
    path = split.shards[1]
    content = bytearray(path.read_bytes())
    content[split.jpg_offset[row] + place % split.jpg_size[row]] ^= 0x10
    path.write_bytes(content)
    with Reader(split) as reader:
        result = reader.read(row)
        assert isinstance(result, BadSample)
        assert (result.sample_id, result.shard) == (split.sample_id[row], "train/train-000001.tar")
        assert result.reason == "crc_mismatch"
        assert isinstance(reader.read(24), bytes)


def test_a_truncated_tar_loses_its_tail_only(split: SplitIndex) -> None:
    rows = np.flatnonzero(split.shard == 2).tolist()
    os.truncate(split.shards[2], split.jpg_offset[rows[5]] + 10)
    with Reader(split) as reader:
        assert isinstance(reader.read(rows[4]), bytes)
        result = reader.read(rows[5])
        assert isinstance(result, BadSample)
        assert (result.reason, result.detail.split()[0]) == ("short_read", "10")
        assert reader.read(rows[-1]).reason == "short_read"


def test_a_deleted_tar_is_an_io_error_until_it_is_back(split: SplitIndex) -> None:
    path = split.shards[0]
    aside = path.rename(path.with_suffix(".aside"))
    with Reader(split) as reader:
        result = reader.read(3)
        assert isinstance(result, BadSample)
        assert (result.reason, result.detail) == ("io_error", "No such file or directory")
        aside.rename(path)
        assert bytes(reader.read(3)) == expected_bytes(split, 3)
