"""The same batches from a folder, a web server and S3, with and without a cache; a training run over HTTP."""

from __future__ import annotations

import json
import multiprocessing
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pipeline.config.augment import Flip
from pipeline.config.cache import CacheConfig
from pipeline.config.errors import UserError
from pipeline.config.load import load_config
from pipeline.data.loader import StepBatch
from pipeline.data.manifest import SplitIndex, open_dataset
from pipeline.data.store.base import StoreStats
from pipeline.engine.run import plan_run
from tests.cache_reader import read_all
from tests.datasets import make_dataset
from tests.http_store import StoreServer, serve
from tests.integration.training import CROP_PX, finish, start, write_recipe
from tests.loading import make_loader
from tests.s3_store import serve_s3

NUM_SHARDS = 6


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("remote")
    return make_dataset(folder, num_samples=160, num_identities=16, crop_px=CROP_PX, samples_per_shard=30)


@pytest.fixture
def server(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StoreServer]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    with serve(data.parent) as store:
        yield store


def batches(split: SplitIndex) -> tuple[list[StepBatch], StoreStats]:
    """Two epochs on one rank."""
    with make_loader(
        split, seed=1, global_batch=32, local_batch=16, stop=320, augment=[Flip()], crop_px=CROP_PX
    ) as loader:
        return list(loader), loader.store_stats


def same(first: list[StepBatch], second: list[StepBatch]) -> bool:
    assert len(first) == len(second) == 10
    for one, other in zip(first, second, strict=True):
        assert one.step_position == other.step_position
        for a, b in zip(one.micro_batches, other.micro_batches, strict=True):
            for name in ("images", "labels", "sample_ids", "valid"):
                assert torch.equal(getattr(a, name), getattr(b, name)), (one.step_position, name)
            assert a.valid.all()
    return True


def test_web_server_and_folder_give_the_same_batches(server: StoreServer, data: Path, tmp_path: Path) -> None:
    local, local_stats = batches(open_dataset(data).split("train"))
    assert local_stats.num_requests == local_stats.bytes_fetched == 0
    plain, stats = batches(open_dataset(f"{server.url}/data").split("train"))
    assert same(local, plain)
    assert stats.num_requests == len(server.of_tars())
    assert NUM_SHARDS <= stats.num_requests <= 20 * NUM_SHARDS, "at most one a shard and micro-batch"
    for granularity in ("block", "shard"):
        cache = CacheConfig(path=tmp_path / granularity, max_bytes="10MiB", granularity=granularity, block_mib=1)
        before = len(server.of_tars())
        cached, stats = batches(open_dataset(f"{server.url}/data", cache).split("train"))
        assert same(local, cached)
        assert stats.num_requests == len(server.of_tars()) - before == NUM_SHARDS


def test_faults_on_the_way_change_no_batch(server: StoreServer, data: Path) -> None:
    faults = ["500", "drop", "short", "shifted", None]
    server.fault = lambda path, attempt: faults[len(server.requests) % len(faults)] if attempt < 3 else None
    local, _ = batches(open_dataset(data).split("train"))
    broken, stats = batches(open_dataset(f"{server.url}/data").split("train"))
    assert same(local, broken)
    assert stats.num_retries > 5


def test_s3_gives_the_same_batches(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    local, _ = batches(open_dataset(data).split("train"))
    with serve_s3(data, monkeypatch) as url:
        split = open_dataset(url).split("train")
        assert split.identities() == open_dataset(data).split("train").identities()
        assert same(local, batches(split)[0])
        cache = CacheConfig(path=tmp_path / "cache", max_bytes="10MiB")
        cached, stats = batches(open_dataset(url, cache).split("train"))
        assert same(local, cached)
        assert stats.num_requests == NUM_SHARDS
        with pytest.raises(UserError, match=r"s3://faces/nothing/dataset\.json: no such file"):
            open_dataset("s3://faces/nothing")


@pytest.mark.parametrize("granularity", ["shard", "block"])
def test_processes_share_a_cache_that_is_too_small(
    server: StoreServer, data: Path, tmp_path: Path, granularity: str
) -> None:
    """One of three is killed while it reads; the others get every photo, CRC checked, and the bound holds."""
    tar_bytes = max(path.stat().st_size for path in (data / "train").glob("*.tar"))
    bound = max(3 * tar_bytes, 1 << 20)  # a cache holds one block at least
    cache = CacheConfig.model_validate(
        {
            "path": tmp_path / "cache",
            "max_bytes": bound,
            "granularity": granularity,
            "block_mib": 1,
        }
    )
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    begun = [context.Event() for _ in range(3)]
    processes = [
        context.Process(target=read_all, args=(f"{server.url}/data", cache, seed, begun[seed], results))
        for seed in range(2)
    ]
    unread = context.Queue()
    endless = context.Process(target=read_all, args=(f"{server.url}/data", cache, 2, begun[2], unread))
    endless.start()
    assert begun[2].wait(60)
    endless.kill()
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in [*processes, endless]:
        process.join(30)
    assert endless.exitcode == -signal.SIGKILL
    for wrong, stats in found:
        assert wrong == []
        assert stats.cache_hits + stats.cache_misses == 3 * 160
        assert stats.num_not_cached == stats.num_read_again == 0
    entries = [path for path in (tmp_path / "cache" / "entries").rglob("*") if path.is_file()]
    assert 0 < sum(path.stat().st_size for path in entries) <= cache.max_bytes


def test_a_random_order_without_a_cache_is_refused_with_its_size(
    server: StoreServer, data: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", data, tmp_path / "run")
    num_bytes = sum(path.stat().st_size for path in (data / "train").glob("*.tar"))
    with pytest.raises(UserError, match=rf"data\.cache: null.*expected a cache of {num_bytes:,} bytes.*streaming"):
        plan_run(load_config(recipe, [f"data.path={server.url}/data"]))
    assert server.of_tars() == []


def test_training_over_http_is_training_from_the_folder(server: StoreServer, data: Path, tmp_path: Path) -> None:
    losses = {}
    cache = [f"data.cache.path={tmp_path / 'cache'}", "data.cache.max_bytes=10MiB"]
    for name, overrides in {"folder": [], "web": [f"data.path={server.url}/data", *cache]}.items():
        output = tmp_path / name
        recipe = write_recipe(tmp_path / f"{name}.yaml", data, output, epochs=2)
        process = start(recipe, 1, overrides)
        text = finish(process)
        assert process.returncode == 0, text
        records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        losses[name] = [record["loss"] for record in records if "loss" in record]
    assert len(losses["folder"]) == 5
    assert losses["web"] == losses["folder"]
    assert len(server.of_tars()) == NUM_SHARDS
