"""A file appears whole under its name, durable, or not at all."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import pytest

from pipeline.atomic_write import write_atomically

REPOSITORY = Path(__file__).parents[2]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_bytes_and_functions_make_new_files_and_replace_old_ones(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.txt"
    write_atomically(path, b"first")
    assert path.read_bytes() == b"first"

    def write(file: IO[bytes]) -> None:
        file.write(b"sec")
        file.write(b"ond")

    write_atomically(path, write)
    assert path.read_bytes() == b"second"
    write_atomically(path, b"third", tmp_path / "work")
    assert path.read_bytes() == b"third"
    assert names(path.parent) == ["file.txt"]
    assert names(tmp_path) == ["new", "work"]
    assert names(tmp_path / "work") == []


def test_the_temporary_file_stands_where_it_is_told_to(tmp_path: Path) -> None:
    seen: list[Path] = []

    def write(file: IO[bytes]) -> None:
        seen.append(Path(file.name))

    write_atomically(tmp_path / "file", write)
    write_atomically(tmp_path / "file", write, tmp_path / "work")
    assert [path.parent for path in seen] == [tmp_path, tmp_path / "work"]
    assert all(re.fullmatch(r"\.file\.[0-9a-f]{32}\.tmp", path.name) for path in seen)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def write(file: IO[bytes]) -> None:
        file.write(b"half")
        raise error

    with pytest.raises(error):
        write_atomically(path, write)
    assert path.read_bytes() == b"old"
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomically(tmp_path / "folder", b"a file cannot replace a folder")
    assert names(tmp_path) == ["file", "folder"]


def test_a_process_that_is_killed_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    code = (
        "import os, signal, sys; from pathlib import Path; from pipeline.atomic_write import write_atomically\n"
        "def write(file):\n    file.write(b'half'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_atomically(Path(sys.argv[1]), write)"
    )
    result = subprocess.run([sys.executable, "-c", code, str(path)], cwd=REPOSITORY, check=False)
    assert result.returncode == -9
    assert path.read_bytes() == b"old"
    assert [name for name in names(tmp_path) if not name.startswith(".")] == ["file"]


def test_the_content_is_on_the_disk_before_the_name_and_the_name_before_it_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def watched_fsync(handle: int) -> None:
        target = os.readlink(f"/proc/self/fd/{handle}")
        size = os.fstat(handle).st_size
        events.append("folder synced" if os.path.isdir(target) else f"{size} bytes synced")
        fsync(handle)

    def watched_replace(old: Path, new: Path) -> None:
        events.append("named")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    write_atomically(tmp_path / "file", b"12345")
    assert events == ["5 bytes synced", "named", "folder synced"]


def test_many_writers_of_one_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    contents = [bytes([number]) * 10_000 for number in range(20)]
    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(lambda content: write_atomically(path, content), contents):
            assert path.read_bytes() in contents
    assert names(tmp_path) == ["file"]
