"""Ledgers of a run that a kill may cut short anywhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.data.reader import CRC_MISMATCH, BadSample
from pipeline.engine.bad_samples import BAD_SAMPLES_FILE, trim_bad_samples, write_bad_samples
from pipeline.json_lines import keep_lines

SAMPLES = [BadSample(number, "train/train-000000.tar", CRC_MISMATCH, "") for number in range(3)]


@pytest.mark.parametrize("cut", [0, 1, 40])
def test_the_ledger_of_bad_samples_survives_a_line_that_was_cut_short(tmp_path: Path, cut: int) -> None:
    for step, sample in enumerate(SAMPLES):
        write_bad_samples(tmp_path, 64 * step, [sample])
    path = tmp_path / BAD_SAMPLES_FILE
    whole = path.read_text().splitlines(keepends=True)
    path.write_text("".join(whole[:2]) + whole[2][: len(whole[2]) - cut])
    trim_bad_samples(tmp_path, 128)
    assert [json.loads(line)["sample_id"] for line in path.read_text().splitlines()] == [0, 1]
    trim_bad_samples(tmp_path, 64)
    assert [json.loads(line)["position"] for line in path.read_text().splitlines()] == [0]


def test_no_file_is_no_lines(tmp_path: Path) -> None:
    keep_lines(tmp_path / "none.jsonl", lambda record: True)
    assert list(tmp_path.iterdir()) == []
