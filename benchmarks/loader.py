"""Samples a second of the loader, against the bare decoder and against what people would use instead.

    preprocess shard PHOTOS build/celeba112 --size 112
    python benchmarks/loader.py --data build/celeba112

All get the same JPEGs, as uint8 crops without augmentation, in batches of 256, on two threads or two processes, from
the page cache. The bare decoder has the bytes in memory and keeps nothing: it is the limit. The peers read the same
tars (webdataset, DALI's own reader) and a folder of the same files (torchvision). They take turns, several times.
`--passes N` runs the loader N times over the data in this process and prints its memory after each.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torchvision
import webdataset
from figures import Figure, write
from torch import Tensor
from torch.utils.data import DataLoader

from pipeline.config.decoder import CpuDecoder, DaliDecoder
from pipeline.data.loader import Loader
from pipeline.data.manifest import SplitIndex, open_dataset
from pipeline.data.reader import Reader
from pipeline.data.step_plan import Order
from pipeline.engine.memory import keep_freed_memory

BATCH = 256
WORKERS = 2
_CHUNK = 16


def main() -> None:
    """Take turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=12_288, help="samples of a turn")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--passes", type=int, help="watch the memory of so many passes instead")
    parser.add_argument("--json", type=Path, help="write the figures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as training does
    split = open_dataset(arguments.data).split("train")
    crop_px = open_dataset(arguments.data).info.crop.size_px
    if arguments.passes:
        watch_memory(split, crop_px, arguments.passes)
        return
    num_samples = arguments.samples // BATCH * BATCH
    folder = unpack(split, arguments.data.with_name(arguments.data.name + "-files"))
    contents = read_all(split)
    tars = [str(path) for path in split.shards]
    own: dict[str, Callable[[], int]] = {
        "simplejpeg": lambda: ours(split, crop_px, CpuDecoder(), num_samples),
        "DALI": lambda: ours(split, crop_px, DaliDecoder(), num_samples),
    }
    peers: dict[str, Callable[[], int]] = {
        "webdataset.WebLoader": lambda: web_loader(tars, num_samples),
        "ImageFolder + DataLoader": lambda: image_folder(folder, num_samples),
        "DALI's reader": lambda: dali_reader(tars, num_samples),
    }
    turns = {"bare decoder": lambda: bare_decoder(contents, num_samples), **own, **peers}
    rates: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(arguments.repeats):
        for name, turn in turns.items():
            started = time.perf_counter()
            done = turn()
            rates[name].append(done / (time.perf_counter() - started))
    figures = [
        Figure(
            f"loader, {crop_px} px, decoded by {name}",
            "samples/s",
            rates[name],
            {peer: rates[peer] for peer in peers},
            ("bare decoder", rates["bare decoder"]),
            goal="90 % of the limit; WebLoader: 2 times, ImageFolder: 1.5 times" if name == "simplejpeg" else "",
        )
        for name in own
    ]
    print(f"{num_samples:,} samples a turn, {arguments.repeats} turns, {WORKERS} threads or processes")
    print("\n".join(figure.text() for figure in figures))
    if arguments.json:
        write(arguments.json, figures)


def ours(
    split: SplitIndex,
    crop_px: int,
    decoder: CpuDecoder | DaliDecoder,
    num_samples: int,
    order: Order | None = None,
) -> int:
    """The training loader on one rank."""
    count = 0
    with make_loader(split, crop_px, decoder, num_samples, order) as loader:
        for batch in loader:
            count += sum(len(micro.images) for micro in batch.micro_batches)
    return count


def make_loader(
    split: SplitIndex, crop_px: int, decoder: CpuDecoder | DaliDecoder, num_samples: int, order: Order | None
) -> Loader:
    """Without augmentation; in the plain order unless another is given."""
    return Loader(
        split,
        seed=0,
        global_batch=BATCH,
        local_batch=BATCH,
        rank=0,
        world_size=1,
        start=0,
        stop=num_samples,
        decoder=decoder,
        augment=(),
        device=torch.device("cpu"),
        crop_px=crop_px,
        order=order,
        num_threads=WORKERS,
    )


def read_all(split: SplitIndex) -> list[Tensor]:
    """The JPEGs of a split, in memory."""
    with Reader(split) as reader:
        return [torch.frombuffer(bytearray(reader.read(row)), dtype=torch.uint8) for row in range(len(split))]


def bare_decoder(contents: list[Tensor], num_samples: int) -> int:
    """libjpeg-turbo, through torchvision, on bytes in memory; pixels are dropped."""
    rgb = torchvision.io.ImageReadMode.RGB.value

    def decode(first: int) -> int:
        for place in range(first, first + _CHUNK):
            torch.ops.image.decode_jpeg(contents[place % len(contents)], rgb, False)
        return _CHUNK

    with ThreadPoolExecutor(WORKERS) as pool:
        return sum(pool.map(decode, range(0, num_samples, _CHUNK)))


def web_loader(tars: list[str], num_samples: int) -> int:
    """webdataset with its shuffle buffer, decoding to uint8 tensors; tars, paths or URLs, dealt to workers."""
    urls = tars * (WORKERS if len(tars) < WORKERS else 1)
    data = webdataset.WebDataset(urls, shardshuffle=len(urls), seed=0).shuffle(1000).decode("torchrgb8")
    data = data.to_tuple("jpg", "cls").batched(BATCH).repeat()
    loader = webdataset.WebLoader(data, batch_size=None, num_workers=WORKERS)
    return take(loader, num_samples)


def image_folder(folder: Path, num_samples: int) -> int:
    """torchvision's folder of folders, shuffled."""
    data = torchvision.datasets.ImageFolder(str(folder), torchvision.transforms.PILToTensor())
    sampler = torch.utils.data.RandomSampler(data, replacement=True, num_samples=num_samples)
    return take(DataLoader(data, BATCH, sampler=sampler, num_workers=WORKERS), num_samples)


def dali_reader(tars: list[str], num_samples: int) -> int:
    """DALI's own reader of tars with its shuffle buffer, and its decoder."""
    from nvidia.dali import fn, pipeline_def
    from nvidia.dali.plugin.pytorch import DALIGenericIterator

    @pipeline_def(batch_size=BATCH, num_threads=WORKERS, device_id=None)  # type: ignore[untyped-decorator]
    def pipeline() -> Any:
        photos, labels = fn.readers.webdataset(paths=tars, ext=["jpg", "cls"], random_shuffle=True, initial_fill=1000)
        return fn.decoders.image(photos, device="cpu"), fn.pad(labels)

    batches = DALIGenericIterator(pipeline(), ["images", "labels"])
    return take(((batch[0]["images"], batch[0]["labels"]) for batch in batches), num_samples)


def take(loader: Any, num_samples: int) -> int:
    """Iterate until so many samples have come."""
    count = 0
    for images, _ in loader:
        count += len(images)
        if count >= num_samples:
            break
    return count


def unpack(split: SplitIndex, folder: Path) -> Path:
    """The crops as files, a folder a person."""
    if not folder.is_dir():
        with Reader(split) as reader:
            for row in range(len(split)):
                content = reader.read(row)
                assert isinstance(content, bytes)
                path = folder / f"{split.label[row]:06d}" / f"{row:08d}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
    return folder


def watch_memory(split: SplitIndex, crop_px: int, num_passes: int) -> None:
    """Resident memory of this process after each pass."""
    found = []
    for number in range(num_passes):
        ours(split, crop_px, CpuDecoder(), len(split))
        status = Path("/proc/self/status").read_text()
        found.append(int(status.split("RssAnon:")[1].split()[0]) / 1024)
        print(f"pass {number + 1}: {found[-1]:.1f} MiB")
    print(f"from the second pass on: {min(found[1:]):.1f} to {max(found[1:]):.1f} MiB")


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message=".*length of IterableDataset.*")
    main()
