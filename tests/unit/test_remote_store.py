"""Data sets of web servers and object stores: the same bytes, whatever goes wrong on the way."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.config.decoder import CpuDecoder
from pipeline.config.errors import UserError
from pipeline.data.loader import Loader
from pipeline.data.manifest import SplitIndex, open_dataset
from pipeline.data.reader import BadSample, Reader
from pipeline.data.store import cache as cache_module
from pipeline.data.store import location, remote
from pipeline.data.store.cache import BlockCache, CacheOptions
from pipeline.data.store.remote import RemoteShards
from preprocess.withdraw import withdraw
from tests.datasets import make_dataset
from tests.http_store import Server, serve

CROP_PX = 32


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(
        tmp_path_factory.mktemp("data"), num_samples=80, num_identities=5, crop_px=CROP_PX, samples_per_shard=40
    )


@pytest.fixture
def server(data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    monkeypatch.setattr(remote, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(location, "TIMEOUT_S", 1.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    from fsspec.implementations.http import HTTPFileSystem

    HTTPFileSystem.clear_instance_cache()
    with serve(data) as running:
        yield running


def options(tmp_path: Path, block_bytes: int | None = 8192, max_bytes: int = 1 << 30) -> CacheOptions:
    return CacheOptions(tmp_path / "cache", max_bytes, block_bytes)


def read_all(split: SplitIndex) -> list[bytes | BadSample]:
    with Reader(split) as reader:
        rows = np.arange(len(split))
        return reader.read_many(rows)


def stats(reader: Reader) -> remote.StoreStats:
    assert isinstance(reader._bytes, RemoteShards)
    return reader._bytes.stats


@pytest.mark.parametrize("block_bytes", [4096, 1 << 20, None], ids=["4 KiB", "1 MiB", "whole shards"])
def test_the_same_batches_as_from_a_folder(data: Path, server: Server, tmp_path: Path, block_bytes: int | None) -> None:
    def load(split: SplitIndex) -> list[Any]:
        with Loader(
            split,
            seed=0,
            global_batch=20,
            local_batch=10,
            rank=0,
            world_size=1,
            start=0,
            stop=160,
            decoder=CpuDecoder(),
            augment=(),
            device=torch.device("cpu"),
            crop_px=CROP_PX,
            num_threads=3,
        ) as loader:
            return [(micro.images, micro.labels, micro.valid) for batch in loader for micro in batch.micro_batches]

    expected = load(open_dataset(data).split("train"))
    split = open_dataset(server.url, options(tmp_path, block_bytes)).split("train")
    for ours, theirs in zip(load(split), expected, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    fetched = [request for request in server.requests if request[0] == "GET"]
    assert len(fetched) == len(set(fetched)), "no block is fetched twice, though three threads want it"
    if block_bytes is None:
        assert len(fetched) == 3, "a request a shard"
    before = len(server.requests)
    load(open_dataset(server.url, options(tmp_path, block_bytes)).split("train"))
    assert len([request for request in server.requests[before:] if request[0] == "GET"]) == 0, "all of it is kept"


def test_neighbours_are_fetched_together(server: Server) -> None:
    split = open_dataset(server.url).split("train")
    with Reader(split) as reader:
        contents = reader.read_many(np.arange(20))
        assert all(isinstance(content, bytes) for content in contents)
        assert len([request for request in server.requests if request[0] == "GET"]) == 1
        far = reader.read_many(np.array([0, 30, 79]))
        assert all(isinstance(content, bytes) for content in far)
        assert stats(reader).fetched_bytes >= sum(map(len, contents))  # type: ignore[arg-type]


@pytest.mark.parametrize("fault", ["error", "drop", "short", "slow", "flip"])
@pytest.mark.parametrize("kept", [True, False], ids=["cache", "direct"])
def test_what_passes_is_tried_again(data: Path, server: Server, tmp_path: Path, fault: str, kept: bool) -> None:
    expected = read_all(open_dataset(data).split("train"))
    split = open_dataset(server.url, options(tmp_path) if kept else None).split("train")
    server.faults = [fault, "", fault]
    assert read_all(split) == expected
    assert read_all(split) == expected, "nothing wrong was kept"


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("error", "failed 5 times, last: 503"),
        ("drop", "failed 5 times, last:"),
        ("short", "failed 5 times, last:"),
        ("whole", "ignores range requests"),
    ],
)
def test_what_does_not_pass_names_the_address(server: Server, fault: str, said: str) -> None:
    split = open_dataset(server.url).split("train")
    server.always = fault
    with Reader(split) as reader:
        found = reader.read(3)
    assert isinstance(found, BadSample)
    assert found.reason == "io_error"
    assert found.detail.startswith(f"{server.url}/train/train-00000")
    assert said in found.detail


def test_bytes_that_are_always_wrong_are_counted(server: Server, tmp_path: Path) -> None:
    split = open_dataset(server.url, options(tmp_path)).split("train")
    server.always = "flip"
    found = read_all(split)
    bad = [one for one in found if isinstance(one, BadSample)]
    assert bad
    assert {one.reason for one in bad} <= {"crc_mismatch"}
    server.always = ""
    assert not [one for one in read_all(split) if isinstance(one, BadSample)]


def test_a_missing_shard_is_not_asked_for_again_and_again(data: Path, server: Server) -> None:
    split = open_dataset(server.url).split("train")
    path = data / "train" / "train-000002.tar"
    hidden = path.rename(path.with_suffix(".hidden"))
    try:
        with Reader(split) as reader:
            found = reader.read(79)
    finally:
        hidden.rename(path)
    assert isinstance(found, BadSample)
    assert f"{server.url}/train/train-000002.tar" in found.detail
    assert len(server.requests) == 1


def test_withdrawals_are_heard_at_the_next_opening(data: Path, server: Server, tmp_path: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(data, tmp_path / "copy"))
    server.root = copy
    assert len(open_dataset(server.url).split("train").withdrawn) == 0
    withdraw(copy, {"key": ["000000004"]}, "")
    assert len(open_dataset(server.url).split("train").withdrawn) == 1


def test_addresses_that_are_not_opened(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path, said in (
        ("pipe:cat x", "would run a command"),
        ("ftp://host/data", "ftp:// are not opened"),
        ("file:///etc", "file:// are not opened"),
        (f"{server.url}/nothing", "dataset.json: no such file"),
        ("http://127.0.0.1:9/data", "cannot be reached"),
    ):
        with pytest.raises(UserError, match=said):
            open_dataset(path)
    monkeypatch.setitem(location.SCHEMES, "gs", "a_package_that_is_not_there")
    with pytest.raises(UserError, match="gs:// needs the package a_package_that_is_not_there"):
        open_dataset("gs://bucket/data")


def test_s3(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from moto.server import ThreadedMotoServer

    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    try:
        host, port = moto.get_host_and_port()
        for name, value in (
            ("AWS_ENDPOINT_URL", f"http://{host}:{port}"),
            ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", "test"),
            ("AWS_DEFAULT_REGION", "us-east-1"),
        ):
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        import s3fs

        fs = s3fs.S3FileSystem(endpoint_url=f"http://{host}:{port}")
        fs.mkdir("faces")
        fs.put(str(data), "faces/set", recursive=True)
        expected = read_all(open_dataset(data).split("train"))
        for cache in (None, options(tmp_path)):
            assert read_all(open_dataset("s3://faces/set", cache).split("train")) == expected
        with pytest.raises(UserError, match=r"s3://faces/none/dataset\.json: no such file"):
            open_dataset("s3://faces/none")
    finally:
        moto.stop()


def test_a_full_disk_costs_the_cache_and_not_the_run(
    data: Path, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    split = open_dataset(server.url, options(tmp_path)).split("train")

    def full(self: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with Reader(split) as reader:
        found = reader.read_many(np.arange(80))
        assert isinstance(reader._bytes, RemoteShards)
        assert reader._bytes._cache is not None
        assert reader._bytes._cache.num_refused > 2
    assert found == read_all(open_dataset(data).split("train"))
    assert caplog.text.count("keeps nothing for now (No space left on device)") == 1


def content_of(number: int) -> bytes:
    return np.random.default_rng(number).bytes(5000 + number)


def hammer(folder: Path, max_bytes: int, seed: int, seconds: float) -> None:
    """Write and read blocks at random until the time is over; wrong bytes end the process with an error."""
    cache = BlockCache(CacheOptions(folder, max_bytes, 8192), "digest")
    rng = np.random.default_rng(seed)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        number = int(rng.integers(200))
        found = cache.read("shard", number, 0, 8192)
        if found is None:
            cache.write("shard", number, content_of(number))
        elif found != content_of(number):
            os._exit(3)


def kept_bytes(folder: Path) -> int:
    total = 0
    for path in (folder / "blocks").rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # it went meanwhile
            total += path.stat().st_size if path.is_file() else 0
    return total


def test_many_processes_share_a_small_cache_and_are_killed(tmp_path: Path) -> None:
    max_bytes = 300_000
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=hammer, args=(tmp_path, max_bytes, seed, 60.0)) for seed in range(3)]
    for worker in workers:
        worker.start()
    greatest, deadline = 0, time.monotonic() + 60
    while time.monotonic() < deadline and kept_bytes(tmp_path) < max_bytes / 2:
        time.sleep(0.05)
    for _ in range(40):
        greatest = max(greatest, kept_bytes(tmp_path))
        time.sleep(0.02)
    for worker in workers:
        assert worker.is_alive(), worker.exitcode
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
    assert max_bytes / 3 < greatest <= max_bytes
    cache = BlockCache(CacheOptions(tmp_path, max_bytes, 8192), "digest")
    found = [cache.read("shard", number, 0, 8192) for number in range(200)]
    assert sum(one is not None for one in found) > 10
    assert all(one is None or one == content_of(number) for number, one in enumerate(found))


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    cache = BlockCache(CacheOptions(tmp_path, 100_000, 8192), "digest")
    for number in range(8):
        cache.write("shard", number, bytes(10_000))
        time.sleep(0.01)
        assert cache.read("shard", 0, 0, 10) == bytes(10)
    for number in range(8, 14):
        cache.write("shard", number, bytes(10_000))
        time.sleep(0.01)
    assert cache.read("shard", 0, 0, 10) is not None, "it was read again and again"
    assert cache.read("shard", 1, 0, 10) is None
    assert cache.read("shard", 13, 0, 10) is not None
    assert kept_bytes(tmp_path) <= 100_000


def test_another_version_never_reads_old_bytes(tmp_path: Path) -> None:
    BlockCache(CacheOptions(tmp_path, 1 << 20, 8192), "one").write("shard", 0, b"old")
    assert BlockCache(CacheOptions(tmp_path, 1 << 20, 8192), "two").read("shard", 0, 0, 3) is None
    assert BlockCache(CacheOptions(tmp_path, 1 << 20, 4096), "one").read("shard", 0, 0, 3) is None
    assert BlockCache(CacheOptions(tmp_path, 1 << 20, 8192), "one").read("shard", 0, 0, 3) == b"old"
    assert cache_module.CacheOptions(tmp_path, 1, None).block_bytes is None
