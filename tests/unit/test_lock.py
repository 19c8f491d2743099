"""One at a time, also where the lock is deleted by who leaves."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from pipeline.config.errors import InUseError
from pipeline.lock import exclusive, exclusive_file, lock_beside


def test_a_lock_on_a_deleted_file_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock is deleted and made anew between a waiter's opening it and locking it."""
    output = tmp_path / "e.parquet"
    lock = lock_beside(output)
    flock, others = fcntl.flock, []

    def replaced(descriptor: int, how: int) -> None:
        if not others:
            lock.unlink()
            others.append(open(lock, "w"))  # noqa: SIM115
            flock(others[0], fcntl.LOCK_EX)
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", replaced)
    with pytest.raises(InUseError, match=r"e\.parquet: another run writes here"):
        exclusive_file(output, wait_s=0.0).__enter__()
    others[0].close()
    with exclusive_file(output, wait_s=0.0):
        assert lock.is_file()
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_a_directory_stays_in_it(tmp_path: Path) -> None:
    with exclusive(tmp_path / "run"):
        assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
        with pytest.raises(InUseError, match="another run writes here"):
            exclusive(tmp_path / "run", wait_s=0.0).__enter__()
    with exclusive(tmp_path / "run", wait_s=0.0):
        pass
