"""What stops `preprocess`, in this process: each is one line, and the exit code says what helps.

2 is for the user to mend, 3 for someone who looks at the data, and after 1 another try may do.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pipeline.config.errors import run_command
from preprocess.cli import app
from preprocess.drivers.local import exclusive
from tests.unit.test_shard import tree, write_photos

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


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("shard", "pipe:touch MARK", "out"), "pipe:touch MARK: a pipe: URL, which would run a command"),
        (("shard", "s3://bucket/photos", "out"), "a URL (s3:); expected a file or a folder"),
        (("export", "pipe:touch MARK", "out", "--format", "rec"), "a pipe: URL, which would run a command"),
        (("import-bin", "pipe:touch MARK", "out"), "a pipe: URL, which would run a command"),
        (("shard", "photos", "out", "--layout", "lwf"), "--layout: unknown layout 'lwf'; expected one of auto, "),
        (("shard", "photos", "out", "--keep-jpegs"), "--keep-jpegs: given without --already-aligned"),
        (("export", "photos", "out", "--format", "zip"), "--format: unknown format 'zip'"),
        (("export", "photos", "out", "--format", "rec"), "photos: dataset.json is missing"),
        (("import-bin", "photos/person 0/text.jpg", "out"), "text.jpg: not a pickle"),
        (("import-bin", "gone.bin", "out"), "gone.bin: cannot be read (No such file or directory)"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, tuple) else "",
)
def test_sources_and_exports_that_are_refused(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(photos.parent)
    code, _, errors = call(monkeypatch, capsys, *words)
    assert (code, errors.count("\n")) == (2, 1)
    assert said in errors
    assert sorted(path.name for path in photos.parent.iterdir()) == ["photos"]


def test_more_rejects_than_photos_need_a_word(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Six of ten are bad: left unfinished until the user accepts them."""
    words = ("shard", photos, tmp_path / "out", *ALIGNED)
    code, _, errors = call(monkeypatch, capsys, *words)
    assert code == 3
    assert "60.0% of the photos were rejected; expected at most 50.0% (--max-rejects)" in errors
    assert not (tmp_path / "out" / "dataset.json").exists()
    assert call(monkeypatch, capsys, *words, "--max-rejects", "0.6")[0] == 0


def test_lack_of_memory_is_one_line(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("preprocess.drivers.local.run_tasks", fail)
    code, _, errors = call(monkeypatch, capsys, "shard", photos, tmp_path / "out", *ALIGNED)
    assert (code, errors.count("\n")) == (1, 1)
    assert "not enough memory for a photo; repeat the same command with fewer --workers" in errors


LONG = "x" * 300


@pytest.mark.parametrize(
    "words", [("shard", LONG, "out"), ("shard", "photos", LONG), ("verify", LONG), ("stats", LONG)], ids=" ".join
)
def test_names_that_are_too_long(
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
) -> None:
    monkeypatch.chdir(photos.parent)
    options = ALIGNED if words[0] == "shard" else ()
    code, _, errors = call(monkeypatch, capsys, *words, *options)
    assert (code, errors.count("\n")) == (2, 1)
    assert f"{LONG}: cannot be used (File name too long)" in errors


@pytest.mark.parametrize(
    ("number", "expected"), [(errno.ENOSPC, 1), (errno.EACCES, 2)], ids=["full or failing", "forbidden"]
)
@pytest.mark.parametrize("fails", ["fsync", "open", "listdir", "scandir"])
def test_a_disk_that_refuses(
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fails: str,
    number: int,
    expected: int,
) -> None:
    """`open` locks OUT, `listdir` looks into it, `scandir` lists the photos, `fsync` stands for each write."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    (tmp_path / "out").mkdir()
    with monkeypatch.context() as patched:
        patched.setattr(os, fails, fail)
        code, _, errors = call(patched, capsys, "shard", photos, tmp_path / "out", *ALIGNED)
    assert (code, errors.count("\n")) == (expected, 1)
    assert f"({os.strerror(number)})" in errors


def test_a_pod_leaves_the_end_to_the_one_that_is_at_it(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("shard", photos, tmp_path / "out", *ALIGNED, "--max-rejects", "0.9", "--driver", "index")
    words += ("--num-pods", "1", "--index", "0")
    (tmp_path / "out").mkdir()
    with exclusive(tmp_path / "out"):
        code, output, errors = call(monkeypatch, capsys, *words)
    assert (code, errors) == (0, "")
    assert "another pod is finishing the data set" in output
    assert not (tmp_path / "out" / "dataset.json").exists()
    assert call(monkeypatch, capsys, *words)[0] == 0
    assert (tmp_path / "out" / "dataset.json").exists()


def test_names_with_brackets(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are no markup, neither in a column's name nor in a path."""
    source = photos / "list.csv"
    source.write_text("path,identity,[/red]\nperson 1/0.jpg,a,1\n")
    monkeypatch.chdir(tmp_path)
    words = ("shard", source, "[/red]", *ALIGNED)
    code, output, errors = call(monkeypatch, capsys, *words)
    assert (code, errors) == (0, "")
    assert "columns not used: [/red]" in output
    assert "[/red] is finished already" in call(monkeypatch, capsys, *words)[1]
    assert "[/red]: no faults in 1 shards" in call(monkeypatch, capsys, "verify", "[/red]")[1]
    assert call(monkeypatch, capsys, "stats", "[/red]")[0] == 0


def test_what_is_not_used_is_said(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = photos / "boxes.csv"
    source.write_text("path,identity,bbox\nperson 1/0.jpg,a,1 2 3 4\nperson 1/1.jpg,b,\n")
    words = ("shard", source, tmp_path / "out", *ALIGNED, "--weights", tmp_path / "w.onnx")
    assert "not used with --already-aligned: the list's bbox, --weights\n" in call(monkeypatch, capsys, *words)[1]


def test_a_damaged_shard_is_mended_as_verify_says(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ("shard", photos, out, *ALIGNED, "--max-rejects", "0.9")
    assert call(monkeypatch, capsys, *words)[0] == 0
    expected = tree(out)
    tar = out / "train" / "train-000000.tar"
    tar.write_bytes(tar.read_bytes().replace(b"\xff\xd8\xff", b"\xff\xd8\xfe"))
    code, output, _ = call(monkeypatch, capsys, "verify", out)
    assert code == 1
    assert f"to mend: delete commits/train-000000.json in {out}, then repeat" in output
    (out / "commits" / "train-000000.json").unlink()
    with monkeypatch.context() as patched:
        patched.setattr("preprocess.run.run_local", interrupt)
        assert call(patched, capsys, *words)[0] == 130
    assert not (out / "dataset.json").exists()  # unfinished until the shard is there again
    assert call(monkeypatch, capsys, *words)[0] == 0
    assert tree(out) == expected


def interrupt(*_: object, **__: object) -> None:
    """As Ctrl-C does."""
    raise KeyboardInterrupt
