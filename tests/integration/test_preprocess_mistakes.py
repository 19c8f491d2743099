"""Mistakes on `preprocess`'s command line, in this process: each is one line and exit code 2, whatever it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config.errors import run_command
from preprocess.cli import app
from tests.unit.test_shard import write_photos

ALIGNED = ("--already-aligned", "--size", "32", "--workers", "1")


def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `preprocess WORDS`."""
    monkeypatch.setattr("sys.argv", ["preprocess", *map(str, words)])
    monkeypatch.setattr("signal.signal", lambda *_: None)  # the handler would stay for the tests that follow
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit) as left:
        run_command(app)
    captured = capsys.readouterr()
    return left.value.code if isinstance(left.value.code, int) else 0, captured.out, captured.err


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mistakes") / "photos"
    write_photos(root, num_identities=2, photos=2)
    return root


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (("--workers", "-1"), "--workers: -1; expected a number of processes"),
        (("--max-rejects", "nan"), "--max-rejects: nan; expected a share, 0 to 1"),
        (("--max-rejects", "50"), "--max-rejects: 50.0; expected a share, 0 to 1"),
    ],
)
def test_options_out_of_range(
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    found: str,
) -> None:
    code, _, errors = call(monkeypatch, capsys, "shard", photos, tmp_path / "out", *ALIGNED, *options)
    assert (code, errors.count("\n")) == (2, 1)
    assert found in errors
    assert not (tmp_path / "out").exists()


def test_more_rejects_than_photos_need_a_word(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Six of ten are bad: left unfinished until the user accepts them."""
    words = ("shard", photos, tmp_path / "out", *ALIGNED)
    code, _, errors = call(monkeypatch, capsys, *words)
    assert code == 2
    assert "60.0% of the photos were rejected; expected at most 50.0% (--max-rejects)" in errors
    assert not (tmp_path / "out" / "dataset.json").exists()
    assert call(monkeypatch, capsys, *words, "--max-rejects", "0.6")[0] == 0


def test_lack_of_memory_is_one_line(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("preprocess.drivers.local._run", fail)
    code, _, errors = call(monkeypatch, capsys, "shard", photos, tmp_path / "out", *ALIGNED)
    assert (code, errors.count("\n")) == (2, 1)
    assert "not enough memory for a photo; repeat the same command with fewer --workers" in errors
