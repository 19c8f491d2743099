"""The folder of cached pieces: bounded, whole, and shared by processes that come, go and are killed."""

from __future__ import annotations

import errno
import hashlib
import logging
import multiprocessing
import os
import resource
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config.errors import UserError
from pipeline.data.store.disk_cache import DiskCache

PIECE = 10_000


def content_of(number: int) -> bytes:
    return hashlib.shake_128(str(number).encode()).digest(PIECE)


def put(cache: DiskCache, number: int) -> bool:
    return cache.put(f"piece {number}", PIECE, [content_of(number)[:3000], content_of(number)[3000:]])


def get(cache: DiskCache, number: int, limits: tuple[int, int] = (0, PIECE)) -> bytes | None:
    found = cache.read(f"piece {number}", PIECE, [limits])
    return None if found is None else found[0]


def held_bytes(path: Path) -> int:
    """Bytes of entries and parts: other processes may remove some while we look."""
    total = 0
    for folder in ("entries", "parts"):
        for place in (path / folder).rglob("*"):
            try:
                total += place.stat().st_size if place.is_file() else 0
            except FileNotFoundError:
                continue
    return total


def test_parts_of_a_piece_come_back(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "cache", 10 * PIECE)
    assert get(cache, 1) is None
    assert put(cache, 1)
    assert get(cache, 1) == content_of(1)
    assert get(cache, 1, (17, 4000)) == content_of(1)[17:4000]
    assert cache.holds("piece 1", PIECE)
    assert not cache.holds("piece 1", PIECE - 1), "another length is another piece"
    cache.remove("piece 1")
    assert get(cache, 1) is None


def test_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "cache", 10 * PIECE)
    for number in range(10):
        assert put(cache, number)
    for number in (0, 1):
        assert get(cache, number) is not None
    assert put(cache, 10)
    left = [number for number in range(11) if get(cache, number) is not None]
    assert left == [0, 1, *range(3, 11)]
    assert held_bytes(tmp_path / "cache") <= 10 * PIECE


def test_what_raises_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "cache", 2 * PIECE)

    def pieces() -> Any:
        yield content_of(1)[:5000]
        raise RuntimeError("the store went away")

    for _ in range(3):  # room that was set apart is found again
        with pytest.raises(RuntimeError):
            cache.put("piece 1", PIECE, pieces())
        assert get(cache, 1) is None
        assert held_bytes(tmp_path / "cache") == 0
    assert not cache.put("piece 1", PIECE, [b"too short"])
    assert put(cache, 2)
    assert put(cache, 3)
    assert held_bytes(tmp_path / "cache") == 2 * PIECE


def test_a_lost_count_is_made_again(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "cache", 3 * PIECE)
    for number in range(3):
        put(cache, number)
    (tmp_path / "cache" / "usage").write_bytes(b"\0\0\0")
    assert put(cache, 3)
    assert held_bytes(tmp_path / "cache") <= 3 * PIECE


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be used as cache"):
        DiskCache(tmp_path / "file" / "cache", PIECE)


def test_a_file_system_without_room_keeps_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = DiskCache(tmp_path / "cache", 100 * PIECE)
    assert put(cache, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (PIECE - 1, before[1]))
    try:
        assert [put(cache, number) for number in (2, 3, 4)] == [False] * 3
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert get(cache, 1) == content_of(1)
    assert get(cache, 2) is None
    assert held_bytes(tmp_path / "cache") == PIECE
    assert [record.levelno for record in caplog.records] == [logging.WARNING], "one warning"
    assert "File too large" in caplog.text
    assert put(cache, 2), "there is room again"


@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite", "replace"])
def test_a_disk_that_fills_up_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    cache = DiskCache(tmp_path / "cache", 100 * PIECE)

    def full(*arguments: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        assert not put(cache, 1)
    assert held_bytes(tmp_path / "cache") == 0
    assert put(cache, 1)
    assert get(cache, 1) == content_of(1)


def test_a_folder_that_vanishes_is_done_without(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "cache", 100 * PIECE)
    (tmp_path / "cache").rename(tmp_path / "gone")
    with cache.fetching("piece 1"):
        assert not put(cache, 1)
    assert get(cache, 1) is None


def _write_slowly(path: Path, has_begun: Any) -> None:
    cache = DiskCache(path, 4 * PIECE)

    def pieces() -> Any:
        yield content_of(1)[:5000]
        has_begun.set()
        time.sleep(60)

    with cache.fetching("piece 1"):
        cache.put("piece 1", PIECE, pieces())


def test_a_killed_writer_leaves_no_entry_no_lock_and_no_loss_of_room(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    path = tmp_path / "cache"
    cache = DiskCache(path, 4 * PIECE)
    has_begun = context.Event()
    process = context.Process(target=_write_slowly, args=(path, has_begun))
    process.start()
    assert has_begun.wait(60)
    assert held_bytes(path) == PIECE, "it has the room for the whole piece"
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(30)
    assert get(cache, 1) is None
    with cache.fetching("piece 1"):
        for number in range(1, 5):
            assert put(cache, number)
    assert held_bytes(path) == 4 * PIECE
    assert [get(cache, number) for number in range(1, 5)] == [content_of(number) for number in range(1, 5)]
    assert list((path / "parts").iterdir()) == []


def _use(path: Path, seed: int, results: Any) -> None:
    """Read pieces at random through a cache that holds a fifth of them, and look at its size each time."""
    cache = DiskCache(path, 8 * PIECE)
    rng = np.random.default_rng(seed)
    num_wrong = num_hits = most_bytes = 0
    for number in rng.integers(0, 40, 400).tolist():
        found = get(cache, number)
        num_hits += found is not None
        if found is None:
            with cache.fetching(f"piece {number}"):
                put(cache, number)
        num_wrong += found not in (None, content_of(number))
        most_bytes = max(most_bytes, held_bytes(path))
    results.put((num_wrong, num_hits, most_bytes))


def test_processes_share_a_small_cache(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=_use, args=(tmp_path / "cache", seed, results)) for seed in range(3)]
    for process in processes:
        process.start()
    found = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(30)
    for num_wrong, num_hits, most_bytes in found:
        assert num_wrong == 0
        assert num_hits > 20
        # a piece that is renamed while one looks may be seen under both names
        assert most_bytes <= (8 + len(processes)) * PIECE
    assert held_bytes(tmp_path / "cache") <= 8 * PIECE
