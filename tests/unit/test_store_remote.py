"""Reading from a web server that misbehaves: right bytes after all, or a reason with a name."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config.cache import CacheConfig
from pipeline.config.errors import TemporaryError, UserError
from pipeline.data.manifest import SplitIndex, open_dataset
from pipeline.data.reader import BadSample, Reader
from pipeline.data.remote import ChangedObjectError
from pipeline.data.retry import RetryPolicy
from pipeline.data.tombstones import TOMBSTONES_FILE, TOMBSTONES_SCHEMA
from tests.datasets import make_dataset
from tests.http_store import StoreServer, serve

QUICK = RetryPolicy(
    attempts=3, first_wait_s=0.01, max_wait_s=0.05, connect_timeout_s=5, stall_timeout_s=0.5, least_bytes_per_s=1 << 20
)
NUM_SHARDS = 4


@dataclass
class Remote:
    store: StoreServer
    split: SplitIndex
    local: SplitIndex

    def expected(self, rows: np.ndarray) -> list[bytes]:
        with Reader(self.local) as reader:
            return [content for content in reader.read_many(rows) if isinstance(content, bytes)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("remote")
    return make_dataset(folder, num_samples=60, num_identities=7, crop_px=16, samples_per_shard=20)


@pytest.fixture
def remote(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Remote]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    with serve(data.parent) as store:
        yield Remote(store, open_dataset(f"{store.url}/data").split("train"), open_dataset(data).split("train"))


def test_index_and_identities_are_those_of_the_folder(remote: Remote) -> None:
    for name in ("shard", "jpg_offset", "jpg_size", "jpg_crc32", "label", "plan_label", "sample_id", "by_label"):
        assert np.array_equal(getattr(remote.split, name), getattr(remote.local, name)), name
    assert remote.split.identities() == remote.local.identities()
    assert remote.split.digest == remote.local.digest


def test_small_files_are_fetched_once(remote: Remote) -> None:
    before = len(remote.store.requests)
    again = open_dataset(f"{remote.store.url}/data/").split("train")
    again.identities()
    assert [path for path, _ in remote.store.requests[before:]] == ["/data/dataset.json", "/data/tombstones.parquet"]


def test_neighbours_share_a_request(remote: Remote) -> None:
    rows = np.arange(60)
    with Reader(remote.split, policy=QUICK) as reader:
        assert reader.read_many(rows) == remote.expected(rows)
        assert len(remote.store.of_tars()) == reader.stats.num_requests == NUM_SHARDS, "one a shard"
        assert reader.stats.num_retries == 0


def test_few_rows_ask_for_few_bytes(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.data.store.joining.MAX_GAP_BYTES", 0)
    rows = np.array([3, 17, 45])
    with Reader(remote.split, policy=QUICK) as reader:
        assert reader.read_many(rows) == remote.expected(rows)
        assert reader.stats.bytes_fetched == remote.split.jpg_size[rows].sum()
        assert reader.stats.num_requests == 3


@pytest.mark.parametrize("fault", ["500", "503", "drop", "stall", "short", "shifted"])
def test_what_passes_is_repeated(remote: Remote, fault: str) -> None:
    rows = np.arange(60)
    remote.store.fault = lambda path, attempt: fault if attempt < 3 else None
    with Reader(remote.split, policy=QUICK) as reader:
        assert reader.read_many(rows) == remote.expected(rows)
        assert (reader.stats.num_requests, reader.stats.num_retries) == (3 * NUM_SHARDS, 2 * NUM_SHARDS)


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ("500", "HTTP 500 Internal Server Error"),
        ("drop", "ClientPayloadError: "),
        ("stall", "Timeout on reading data from socket"),
        ("short", "Content-Length"),
        ("shifted", "Content-Range 'bytes "),
    ],
)
def test_what_stays_is_counted_under_its_name(remote: Remote, fault: str, cause: str) -> None:
    remote.store.fault = lambda path, attempt: fault if "000001" in path else None
    rows = np.array([0, 25, 59])
    with Reader(remote.split, policy=QUICK) as reader:
        first, bad, last = reader.read_many(rows)
    assert [first, last] == remote.expected(rows[[0, 2]])
    assert isinstance(bad, BadSample)
    assert (bad.reason, bad.shard) == ("io_error", "train/train-000001.tar")
    assert bad.detail.startswith(f"{remote.store.url}/data/train/train-000001.tar: 3 attempts in ")
    assert f"last: {cause}" in bad.detail


def test_a_reader_that_is_stopped_does_not_wait_for_the_store(remote: Remote) -> None:
    """With pauses of an hour, who still waited would not come back before the test's time limit."""
    patient = RetryPolicy(attempts=9, first_wait_s=3600, max_wait_s=3600)
    remote.store.fault = lambda path, attempt: "503"
    with Reader(remote.split, policy=patient) as reader, ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(reader.read, row) for row in (0, 50)]
        while len(remote.store.of_tars()) < 2:
            time.sleep(0.01)
        reader.stop()
        for future in waiting:
            found = future.result()
            assert isinstance(found, BadSample)
            assert "given up after" in found.detail or "was stopped" in found.detail


def test_a_missing_shard_is_not_asked_for_again(remote: Remote) -> None:
    remote.store.fault = lambda path, attempt: "404"
    with Reader(remote.split, policy=QUICK) as reader:
        bad = reader.read(0)
        assert reader.stats.num_requests == 1
    assert isinstance(bad, BadSample)
    assert (bad.reason, bad.detail) == ("io_error", f"{remote.split.shards[0]}: not found")


@pytest.mark.parametrize(
    ("fault", "words"), [("whole", "its server ignores ranges"), ("403", r"access denied \(HTTP 403\)")]
)
def test_a_store_of_no_use_stops_the_run(remote: Remote, fault: str, words: str) -> None:
    remote.store.fault = lambda path, attempt: fault
    with Reader(remote.split, policy=QUICK) as reader, pytest.raises(UserError, match=words):
        reader.read(0)
    assert len(remote.store.of_tars()) == 1


def test_bits_that_flip_on_the_way_are_read_again(remote: Remote) -> None:
    remote.store.fault = lambda path, attempt: "flip" if attempt == 1 else None
    rows = np.arange(0, 60, 20)
    remote.store.attempts.clear()
    with Reader(remote.split, policy=QUICK) as reader:
        # a single photo's request is repeated with the same range, so only its first answer is wrong
        assert reader.read_many(rows) == remote.expected(rows)
        assert reader.stats.num_read_again == 3


def test_bits_that_are_wrong_in_the_store_are_counted(remote: Remote) -> None:
    remote.store.fault = lambda path, attempt: "flip"
    with Reader(remote.split, policy=QUICK) as reader:
        bad = reader.read(7)
    assert isinstance(bad, BadSample)
    assert bad.reason == "crc_mismatch"


def test_an_object_of_another_size_is_named(remote: Remote, data: Path, tmp_path: Path) -> None:
    copy = tmp_path / "data"
    _copy(data, copy)
    (copy / "train" / "train-000000.tar").write_bytes(b"\0" * 5000)
    with serve(tmp_path) as store:
        split = open_dataset(f"{store.url}/data").split("train")
        with Reader(split, policy=QUICK) as reader:
            for row in (0, 14):  # within what is left, and beyond
                with pytest.raises(
                    ChangedObjectError, match=r"train-000000\.tar: has 5,000 bytes; expected [\d,]+, as its"
                ):
                    reader.read(row)
            assert isinstance(reader.read(20), bytes)


def test_an_object_that_is_replaced_while_it_is_read_is_named(remote: Remote) -> None:
    with Reader(remote.split, policy=QUICK) as reader:
        reader.read(0)
        remote.store.etag = "second"
        with pytest.raises(ChangedObjectError, match="was replaced while it was read"):
            reader.read(1)


def test_a_manifest_that_is_not_its_commits_is_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    copy = tmp_path / "data"
    _copy(data, copy)
    manifest = copy / "manifest" / "train-000002.parquet"
    content = bytearray(manifest.read_bytes())
    content[100] ^= 1
    manifest.write_bytes(content)
    with serve(tmp_path) as store, pytest.raises(UserError, match=r"train-000002\.parquet: sha256"):
        open_dataset(f"{store.url}/data").split("train")


def test_shards_of_another_version_are_refused_until_the_copy_is_whole(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    other = make_dataset(tmp_path, num_samples=60, num_identities=7, crop_px=16, samples_per_shard=20, seed=1)
    description = (other / "dataset.json").read_bytes()
    (other / "dataset.json").write_bytes((data / "dataset.json").read_bytes())
    _copy(data, tmp_path / "whole")
    with serve(tmp_path) as store:
        with pytest.raises(UserError, match=r"commits: not the commit records that dataset\.json was written for"):
            open_dataset(f"{store.url}/data").split("train")
        other.rename(tmp_path / "aside")
        (tmp_path / "whole").rename(tmp_path / "data")
        assert len(open_dataset(f"{store.url}/data").split("train")) == 60
    assert description != (data / "dataset.json").read_bytes()


def test_an_address_without_a_data_set_is_one_line(remote: Remote) -> None:
    with pytest.raises(UserError, match=r"/nowhere/dataset\.json: no such file"):
        open_dataset(f"{remote.store.url}/nowhere")


def test_a_store_that_does_not_answer_may_do_so_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.data.mirror.RetryPolicy", lambda: QUICK)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(TemporaryError, match=r"dataset\.json: 3 attempts in .*, last: Client") as caught:
        open_dataset(f"http://127.0.0.1:{port}/data")
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("granularity", ["shard", "block"])
def test_a_cache_asks_once_for_each_piece(remote: Remote, tmp_path: Path, granularity: str) -> None:
    cache = CacheConfig(path=tmp_path / "cache", max_bytes="8MiB", granularity=granularity, block_mib=1)
    split = open_dataset(f"{remote.store.url}/data", cache).split("train")
    rows = np.random.default_rng(0).permutation(60)
    for _ in range(2):  # the second reader finds what the first one left
        with Reader(split, policy=QUICK) as reader:
            assert reader.read_many(rows) == remote.expected(rows)
            stats = reader.stats
    assert len(remote.store.of_tars()) == NUM_SHARDS
    assert (stats.num_requests, stats.cache_hits, stats.cache_misses) == (0, 60, 0)


def test_withdrawn_photos_are_not_asked_for(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    copy = tmp_path / "data"
    _copy(data, copy)
    with serve(tmp_path) as store:
        split = open_dataset(f"{store.url}/data").split("train")
        assert len(split.withdrawn) == 0
        columns = {"sample_id": [int(split.sample_id[7])], "key": ["k"], "source_sha256": [""], "reason": ["asked"]}
        pq.write_table(pa.table(columns, schema=TOMBSTONES_SCHEMA), copy / TOMBSTONES_FILE)
        split = open_dataset(f"{store.url}/data").split("train")
        rows = np.array([6, 7, 8])
        with Reader(split, policy=QUICK) as reader:
            bad = reader.read(7)
            assert reader.stats.num_requests == 0
            before, withdrawn, after = reader.read_many(rows)
        assert bad == withdrawn
        assert isinstance(bad, BadSample)
        assert bad.reason == "withdrawn"
        with Reader(open_dataset(data).split("train")) as reader:
            assert [before, after] == reader.read_many(rows[[0, 2]])
        (copy / TOMBSTONES_FILE).write_bytes(b"damaged")
        with pytest.raises(UserError, match="restore it: without it they would be read"):
            open_dataset(f"{store.url}/data").split("train")


def test_a_photo_that_is_asked_for_twice_is_the_same_twice(remote: Remote, tmp_path: Path) -> None:
    cache = CacheConfig(path=tmp_path / "cache", max_bytes="8MiB")
    rows = np.array([5, 30, 5, 6, 30, 5])
    for split in (remote.split, open_dataset(f"{remote.store.url}/data", cache).split("train")):
        with Reader(split, policy=QUICK) as reader:
            assert reader.read_many(rows) == remote.expected(rows)
            assert reader.stats.num_read_again == 0


def test_a_photo_across_two_pieces_is_put_together(
    remote: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.data.store.remote_store.MIB", 700)  # smaller than a photo
    monkeypatch.setattr("pipeline.data.store.remote_store.MAX_REQUEST_BYTES", 256)
    cache = CacheConfig(path=tmp_path / "cache", max_bytes="8MiB", block_mib=1)
    split = open_dataset(f"{remote.store.url}/data", cache).split("train")
    crossing = np.flatnonzero(split.jpg_offset // 700 != (split.jpg_offset + split.jpg_size - 1) // 700)
    assert len(crossing) > 5
    for _ in range(2):
        with Reader(split, policy=QUICK) as reader:
            assert reader.read_many(crossing) == remote.expected(crossing)
            assert reader.stats.num_read_again == 0


def test_a_full_disk_serves_the_photos_all_the_same(
    remote: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    cache = CacheConfig(path=tmp_path / "cache", max_bytes="8MiB")
    split = open_dataset(f"{remote.store.url}/data", cache).split("train")
    monkeypatch.setattr(os, "posix_fallocate", full)
    rows = np.arange(60)
    with Reader(split, policy=QUICK) as reader:
        assert reader.read_many(rows) == remote.expected(rows)
        assert (reader.stats.num_not_cached, reader.stats.num_requests) == (NUM_SHARDS, NUM_SHARDS)


def test_a_new_version_never_meets_old_bytes(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    cache = CacheConfig(path=tmp_path / "cache", max_bytes="8MiB")
    with serve(tmp_path) as store:
        for seed in range(2):
            place = tmp_path / f"version{seed}"
            made = make_dataset(place, num_samples=20, num_identities=4, crop_px=16, seed=seed)
            (tmp_path / "data").unlink(missing_ok=True)
            (tmp_path / "data").symlink_to(made)
            with Reader(open_dataset(f"{store.url}/data", cache).split("train"), policy=QUICK) as reader:
                found = reader.read_many(np.arange(20))
            with Reader(open_dataset(made).split("train")) as reader:
                assert found == reader.read_many(np.arange(20))


def test_a_cache_smaller_than_a_piece_is_refused(remote: Remote, tmp_path: Path) -> None:
    for granularity, words in {"block": "8,388,608 or more", "shard": "[0-9,]+ or more"}.items():
        cache = CacheConfig(path=tmp_path / "cache", max_bytes=1000, granularity=granularity)
        split = open_dataset(f"{remote.store.url}/data", cache).split("train")
        with pytest.raises(UserError, match=rf"data\.cache\.max_bytes: 1,000; expected {words}, the size of one piece"):
            Reader(split, policy=QUICK).read(0)


def test_a_wrong_entry_is_replaced(remote: Remote, tmp_path: Path) -> None:
    cache = CacheConfig(path=tmp_path / "cache", max_bytes="8MiB")
    split = open_dataset(f"{remote.store.url}/data", cache).split("train")
    rows = np.arange(60)
    with Reader(split, policy=QUICK) as reader:
        reader.read_many(rows)
    entries = [path for path in (tmp_path / "cache" / "entries").rglob("*") if path.is_file()]
    assert len(entries) == NUM_SHARDS
    for entry, damage in zip(entries, ("zero", "cut", "grow", "empty"), strict=True):
        content = entry.read_bytes()
        entry.write_bytes(
            {"zero": bytes(len(content)), "cut": content[:-1], "grow": content + b"x", "empty": b""}[damage]
        )
    for _ in range(3):  # mends the photos, then the piece that was thrown away, then finds all in order
        with Reader(split, policy=QUICK) as reader:
            assert reader.read_many(rows) == remote.expected(rows)
    assert (reader.stats.num_requests, reader.stats.cache_hits) == (0, 60)


def _copy(source: Path, target: Path) -> None:
    for path in source.rglob("*"):
        if path.is_file():
            place = target / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(path.read_bytes())
