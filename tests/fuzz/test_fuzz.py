"""A few thousand hostile inputs a run, 100,000 with the slow tests. See the package's text."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config.errors import UserError
from tests.fuzz import run
from tests.fuzz.run import READERS, fuzz, memory_limit


@pytest.mark.parametrize("num_inputs", [3_000, pytest.param(100_000, marks=pytest.mark.slow)])
@pytest.mark.timeout(1800)
def test_nothing_but_named_errors(num_inputs: int) -> None:
    """In a process of its own: the limit of memory is a process's."""
    result = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "--inputs", str(num_inputs)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    found = dict(re.findall(r"^(\w+): .*, ([\d,]+) read", result.stdout, re.MULTILINE))
    assert found.keys() == READERS.keys()
    # inputs that are all refused at the first byte would prove nothing
    assert all(int(count.replace(",", "")) > num_inputs / 3 / 50 for count in found.values()), result.stdout


def _fail(_rng: random.Random, _folder: Path) -> None:
    raise KeyError("x")


def _claim(_rng: random.Random, _folder: Path) -> None:
    bytearray(2**30)


def _hang(_rng: random.Random, _folder: Path) -> None:
    while True:
        pass


def _tell_in_lines(_rng: random.Random, _folder: Path) -> None:
    raise UserError("x", "two\nlines")


@pytest.mark.parametrize(
    ("reader", "said"),
    [(_fail, "KeyError"), (_claim, "MemoryError"), (_hang, "TooSlowError"), (_tell_in_lines, "several lines")],
)
def test_failures_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: object, said: str) -> None:
    """The harness itself: a reader that fails, believes a claim, hangs or babbles is caught."""
    monkeypatch.setitem(READERS, "bad", reader)
    if reader is _hang:
        monkeypatch.setattr(run, "LIMIT_S", 0.2)
    with memory_limit():
        outcome = fuzz("bad", range(2), 0, tmp_path)
    assert len(outcome.failures) == 2
    assert said in outcome.failures[0]
