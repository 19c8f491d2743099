"""The loader where bytes are not in memory yet: files that the disk has to read, and a web server.

    preprocess shard PHOTOS build/celeba112 --size 112
    python benchmarks/loader_sources.py --data build/celeba112

A turn is one pass over the data, from a new loader on, as uint8 crops without augmentation on two threads or two
processes. Files: the page cache forgets them before each turn. Web server: aiohttp's, on loopback, in a process that
shares the cores; ours reads in its streaming order into an empty cache, and once more from the cache as that pass left
it. The peers are webdataset on the same tars (from the web server through curl, as it does) and torchvision's
ImageFolder on the same crops as files. The limit is the bare decoder on bytes in memory.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from figures import Figure, write
from loader import BATCH, WORKERS, bare_decoder, image_folder, ours, read_all, unpack, web_loader
from ports import free_port

from pipeline.config.cache import CacheConfig
from pipeline.config.decoder import CpuDecoder
from pipeline.config.location import RemotePath
from pipeline.data.manifest import SplitIndex, open_dataset
from pipeline.data.streaming_order import StreamingOrder
from pipeline.engine.memory import keep_freed_memory

SERVER = """
import sys
from aiohttp import web

app = web.Application()
app.router.add_static("/", sys.argv[1])
web.run_app(app, host="127.0.0.1", port=int(sys.argv[2]), print=None, access_log=None)
"""
CACHE_BYTES = 2**33
PEERS = ("webdataset.WebLoader", "ImageFolder + DataLoader")


def main() -> None:
    """Take turns and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as training does
    dataset = open_dataset(arguments.data)
    split, crop_px = dataset.split("train"), dataset.info.crop.size_px
    files = unpack(split, arguments.data.with_name(arguments.data.name + "-files"))
    num_samples = len(split) // BATCH * BATCH
    contents = read_all(split)
    tars = [str(path) for path in split.shards]
    cache = Path(tempfile.mkdtemp(prefix="loader-sources-"))
    with serve(arguments.data) as url:
        urls = [f"{url}/{path.relative_to(arguments.data)}" for path in split.shards]

        def from_server() -> int:
            remote = open_dataset(RemotePath(url), CacheConfig(path=cache, max_bytes=CACHE_BYTES)).split("train")
            return ours(remote, crop_px, CpuDecoder(), num_samples, streaming(remote))

        turns: dict[str, Callable[[], int]] = {
            "bare decoder": lambda: bare_decoder(contents, num_samples),
            "ours, files": lambda: ours(split, crop_px, CpuDecoder(), num_samples),
            "ours, server": from_server,
            "ours, cache": from_server,
            f"{PEERS[0]}, files": lambda: web_loader(tars, num_samples),
            f"{PEERS[1]}, files": lambda: image_folder(files, num_samples),
            f"{PEERS[0]}, server": lambda: web_loader(urls, num_samples),
        }
        rates: dict[str, list[float]] = {name: [] for name in turns}
        for _ in range(arguments.repeats):
            shutil.rmtree(cache)
            for name, turn in turns.items():
                forget([*split.shards, *files.rglob("*.jpg")])
                started = time.perf_counter()
                rates[name].append(turn() / (time.perf_counter() - started))
    shutil.rmtree(cache)
    figures = [
        Figure(
            f"loader, {crop_px} px, {where}",
            "samples/s",
            rates[f"ours, {source}"],
            {peer: rates[f"{peer}, {source}"] for peer in PEERS if f"{peer}, {source}" in rates},
            ("bare decoder", rates["bare decoder"]),
        )
        for source, where in (
            ("files", "files that are not in the page cache"),
            ("server", "a web server, cache empty"),
            ("cache", "a web server, from the cache"),
        )
    ]
    print(f"{num_samples:,} samples a turn, {arguments.repeats} turns, {WORKERS} threads or processes")
    print("\n".join(figure.text() for figure in figures))
    if arguments.json:
        write(arguments.json, figures)


def streaming(split: SplitIndex) -> StreamingOrder:
    """The order for slow stores, with its default sizes."""
    return StreamingOrder(split, 0, block_photos=1024, window_blocks=32)


def forget(paths: list[Path]) -> None:
    """Let the page cache drop files; nothing is written to them, so it does."""
    for path in paths:
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Serve a folder with ranges, in a process of its own."""
    port = free_port()
    process = subprocess.Popen([sys.executable, "-c", SERVER, str(folder.absolute()), str(port)])
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(100):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/dataset.json"):
                break
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message=".*length of IterableDataset.*")
    main()
