"""The loader: right pixels and labels, bad samples masked and counted, threads that stop."""

from __future__ import annotations

import dataclasses
import gc
import os
import threading
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.io

from pipeline.config.augment import AllOf, Blur, Erase, Flip, Jpeg, OneOf
from pipeline.config.decoder import CpuDecoder, DaliDecoder
from pipeline.config.errors import UserError
from pipeline.data.augment import Step, draw_steps
from pipeline.data.decode_cpu import CpuBatchDecoder
from pipeline.data.decode_dali import DaliBatchDecoder
from pipeline.data.loader import Loader, StepBatch
from pipeline.data.manifest import SplitIndex, open_dataset
from pipeline.data.order import PlainOrder
from pipeline.data.reader import SampleReads
from tests.datasets import make_dataset
from tests.loading import make_loader

CPU = torch.device("cpu")
CROP_PX = 48
BOTH = pytest.mark.parametrize("decoder", [CpuDecoder(), DaliDecoder()], ids=["cpu", "dali"])


@pytest.fixture
def split(tmp_path: Path) -> SplitIndex:
    root = make_dataset(tmp_path, num_samples=100, num_identities=7, crop_px=CROP_PX, samples_per_shard=40)
    return open_dataset(root).split("train")


AUGMENT = (Flip(), OneOf(operations=(Blur(), AllOf(operations=(Jpeg(), Erase()))), probability=0.7))


def small_loader(split: SplitIndex, **options: Any) -> Loader:
    chosen = {"global_batch": 20, "local_batch": 10, "stop": 100, "augment": (Flip(),), "crop_px": CROP_PX} | options
    return make_loader(split, **chosen)


def load(split: SplitIndex, **options: Any) -> list[StepBatch]:
    with small_loader(split, **options) as loader:
        return list(loader)


def decode_directly(split: SplitIndex, row: int) -> torch.Tensor:
    """Decode by the other way through torchvision: a file read as a whole, and the library's own wrapper."""
    content = bytearray(split.shards[split.shard[row]].read_bytes()[split.jpg_offset[row] :][: split.jpg_size[row]])
    data = torch.frombuffer(content, dtype=torch.uint8)
    with pytest.warns(DeprecationWarning, match="TorchCodec"):
        return torchvision.io.decode_jpeg(data, mode=torchvision.io.ImageReadMode.RGB)


def damage(split: SplitIndex, row: int) -> SplitIndex:
    """Break a JPEG's frame header and give it the right checksum; its size still reads as before."""
    path = split.shards[split.shard[row]]
    content = bytearray(path.read_bytes())
    frame = content.index(b"\xff\xc0", split.jpg_offset[row])
    assert frame < split.jpg_offset[row] + split.jpg_size[row]
    content[frame + 4] = 12  # bits a sample
    path.write_bytes(content)
    crc = split.jpg_crc32.copy()
    jpeg = content[split.jpg_offset[row] :][: split.jpg_size[row]]
    crc[row] = zlib.crc32(jpeg)
    return dataclasses.replace(split, jpg_crc32=crc)


@BOTH
def test_pixels_labels_and_ids_are_right(split: SplitIndex, decoder: CpuDecoder | DaliDecoder) -> None:
    order = PlainOrder.create(split.digest, 100, 5)
    batches = load(split, seed=5, decoder=decoder, start=60, stop=180)
    assert [batch.step_position for batch in batches] == [60, 80, 100, 120, 140, 160]
    num_flipped = 0
    for batch in batches:
        assert batch.num_micro_batches_global == 2
        assert batch.bad_samples == []
        assert [micro.position for micro in batch.micro_batches] == [batch.step_position, batch.step_position + 10]
        for micro in batch.micro_batches:
            rows = order.rows(micro.position, 10)
            assert micro.images.dtype == torch.uint8
            assert micro.images.shape == (10, 3, CROP_PX, CROP_PX)
            assert micro.images.is_contiguous(memory_format=torch.channels_last)
            assert micro.labels.tolist() == split.label[rows].tolist()
            assert micro.sample_ids.tolist() == split.sample_id[rows].tolist()
            assert micro.valid.all()
            assert not micro.is_filler
            (step,) = draw_steps([Flip()], 5, np.arange(micro.position, micro.position + 10), CROP_PX)
            flips = step.is_on
            num_flipped += int(flips.sum())
            for image, row, flip in zip(micro.images, rows, flips, strict=True):
                expected = decode_directly(split, row).flip(-1) if flip else decode_directly(split, row)
                difference = (image.int() - expected.int()).abs()
                # torchvision's and DALI's libjpeg-turbo may round differently; on the CPU they were seen to agree.
                assert difference.float().mean() <= (0 if isinstance(decoder, CpuDecoder) else 1)
    assert 40 < num_flipped < 80


def test_global_batches_do_not_depend_on_ranks(split: SplitIndex) -> None:
    alone = load(split, global_batch=50, stop=200)
    for world_size in (2, 3, 6):
        by_rank = [load(split, global_batch=50, stop=200, rank=r, world_size=world_size) for r in range(world_size)]
        for step, expected in enumerate(alone):
            parts = [batches[step] for batches in by_rank]
            assert {len(part.micro_batches) for part in parts} == {-(-5 // world_size)}
            micros = [micro for part in parts for micro in part.micro_batches]
            real = [micro for micro in micros if not micro.is_filler]
            assert len(real) == expected.num_micro_batches_global == 5
            for micro, other in zip(real, expected.micro_batches, strict=True):
                assert torch.equal(micro.images, other.images)
                assert torch.equal(micro.labels, other.labels)
                assert micro.position == other.position
            for filler in micros:
                if filler.is_filler:
                    assert not filler.valid.any()
                    assert filler.labels.tolist() == [-1] * 10
                    copied = next(micro for micro in expected.micro_batches if micro.position == filler.position)
                    assert torch.equal(filler.images, copied.images)


@BOTH
def test_augmented_pixels_do_not_depend_on_ranks_or_threads(
    split: SplitIndex, decoder: CpuDecoder | DaliDecoder
) -> None:
    options: dict[str, Any] = {"augment": AUGMENT, "decoder": decoder, "global_batch": 30, "stop": 60}
    alone = [m for step in load(split, **options) for m in step.micro_batches]
    plain = [m for step in load(split, **options | {"augment": ()}) for m in step.micro_batches]
    assert any(not torch.equal(one.images, other.images) for one, other in zip(alone, plain, strict=True))
    expected = {micro.position: micro.images for micro in alone}
    for world_size, num_threads in ((1, 3), (2, 1), (3, 2)):
        for rank in range(world_size):
            ours = load(split, **options, rank=rank, world_size=world_size, num_threads=num_threads)
            for micro in (micro for step in ours for micro in step.micro_batches if not micro.is_filler):
                assert torch.equal(micro.images, expected[micro.position])


@BOTH
def test_bad_samples_are_masked_and_counted(split: SplitIndex, decoder: CpuDecoder | DaliDecoder) -> None:
    split = damage(split, 7)
    path = split.shards[0]
    content = bytearray(path.read_bytes())
    content[split.jpg_offset[20] + 300] ^= 1
    path.write_bytes(content)
    split.shards[1].unlink()
    os.truncate(split.shards[2], split.jpg_offset[99] + 100)
    label_of = dict(zip(split.sample_id.tolist(), split.label.tolist(), strict=True))
    batches = load(split, decoder=decoder)
    reasons = {bad.sample_id: bad.reason for batch in batches for bad in batch.bad_samples}
    by_row = {7: "undecodable", 20: "crc_mismatch", 99: "short_read"}
    by_row |= dict.fromkeys(np.flatnonzero(split.shard == 1), "io_error")
    expected = {int(split.sample_id[row]): reason for row, reason in by_row.items()}
    assert len(expected) > 30
    assert reasons == expected
    for batch in batches:
        assert len(batch.bad_samples) == sum(int((~micro.valid).sum()) for micro in batch.micro_batches)
        for micro in batch.micro_batches:
            for slot, sample_id in enumerate(micro.sample_ids.tolist()):
                is_bad = sample_id in expected
                assert bool(micro.valid[slot]) is not is_bad
                assert int(micro.labels[slot]) == (-1 if is_bad else label_of[sample_id])
                assert bool(micro.images[slot].any()) is not is_bad
    good = load(split, decoder=CpuDecoder())
    for batch, reference in zip(batches, good, strict=True):
        for micro, other in zip(batch.micro_batches, reference.micro_batches, strict=True):
            difference = (micro.images.int() - other.images.int()).abs().float().mean()
            assert difference <= 1, "the neighbours of a bad sample keep their own pixels"


def test_a_scan_that_ends_early_is_refused(split: SplitIndex) -> None:
    """libjpeg only warns of it and makes up the rest; the CRC is right where the file was broken before sharding."""
    row = 11
    path = split.shards[split.shard[row]]
    content = bytearray(path.read_bytes())
    begin, size = int(split.jpg_offset[row]), int(split.jpg_size[row])
    cut = begin + size // 2
    content[cut : begin + size] = b"\x00" * (size - size // 2 - 2) + b"\xff\xd9"
    path.write_bytes(content)
    crc, sizes = split.jpg_crc32.copy(), split.jpg_size.copy()
    jpeg = bytes(content[begin:cut]) + b"\xff\xd9"
    content[begin : begin + len(jpeg)] = jpeg
    path.write_bytes(content)
    crc[row], sizes[row] = zlib.crc32(jpeg), len(jpeg)
    broken = dataclasses.replace(split, jpg_crc32=crc, jpg_size=sizes)
    bad = [bad for batch in load(broken) for bad in batch.bad_samples]
    assert [(one.sample_id, one.reason) for one in bad] == [(int(split.sample_id[row]), "undecodable")]
    assert "premature end" in bad[0].detail


@BOTH
def test_crops_of_another_size_are_refused(split: SplitIndex, decoder: CpuDecoder | DaliDecoder) -> None:
    batches = load(split, decoder=decoder, crop_px=32)
    assert sum(len(batch.bad_samples) for batch in batches) == 100
    bad = batches[0].bad_samples[0]
    assert (bad.reason, bad.detail) == ("size_mismatch", "48x48 px, expected 32x32")
    assert not any(micro.valid.any() for batch in batches for micro in batch.micro_batches)


def test_a_failure_of_dali_itself_is_not_blamed_on_samples(split: SplitIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(self: DaliBatchDecoder, contents: list[Any], steps: Sequence[Step], slots: list[int]) -> torch.Tensor:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(DaliBatchDecoder, "_run", run)
    with pytest.raises(RuntimeError, match="out of memory"):
        load(split, decoder=DaliDecoder())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_gpu_decoding_without_a_gpu_is_refused(split: SplitIndex) -> None:
    with pytest.raises(UserError, match=r"decoder.device: gpu, but there is no CUDA device.*set decoder.device=cpu"):
        small_loader(split, decoder=DaliDecoder(device="gpu"))


def test_fewer_samples_than_a_global_batch_are_refused(split: SplitIndex) -> None:
    with pytest.raises(UserError, match=r"fewer samples than one global batch \(100 < 110\)"):
        small_loader(split, global_batch=110)


def loader_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("loader-")]


@BOTH
def test_a_consumer_may_stop_early(split: SplitIndex, decoder: CpuDecoder | DaliDecoder) -> None:
    gc.collect()  # what tests before this one left open would count, too
    before = len(os.listdir("/proc/self/fd"))
    with small_loader(split, stop=10_000, decoder=decoder) as loader:
        for number, _ in enumerate(loader):
            assert loader_threads()
            if number == 3:
                break
    assert loader_threads() == []
    loader.close()  # a second time does nothing
    if isinstance(decoder, CpuDecoder):
        assert len(os.listdir("/proc/self/fd")) == before


def test_work_runs_ahead_but_no_further_than_asked(split: SplitIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    take = SampleReads.take
    monkeypatch.setattr(SampleReads, "take", lambda self, slots: (reads.extend(slots), take(self, slots))[1])
    with small_loader(split, stop=10_000, prefetch_steps=2) as loader:
        iterator = iter(loader)
        next(iterator)
        deadline = time.monotonic() + 10
        while len(reads) < 60 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        assert len(reads) == 60, "the step taken and two more"


def test_an_exception_in_a_thread_reaches_the_consumer(split: SplitIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = CpuBatchDecoder.prepare
    calls: list[int] = []

    def fail(self: CpuBatchDecoder, memory: Any, contents: Mapping[int, bytes], steps: Sequence[Step]) -> Any:
        calls.append(1)
        if len(calls) == 9:
            raise MemoryError("no room")
        return prepare(self, memory, contents, steps)

    monkeypatch.setattr(CpuBatchDecoder, "prepare", fail)
    with small_loader(split, stop=10_000) as loader, pytest.raises(MemoryError, match="no room") as caught:
        for _ in loader:
            pass
    assert caught.value.__notes__[0].startswith("in a loader thread of rank 0, for the step at stream position ")
    assert loader_threads() == []


def test_close_wakes_work_that_waits_for_work_not_begun(split: SplitIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    take = SampleReads.take

    def slow_take(self: SampleReads, slots: Any) -> Any:
        release.wait(30)
        return take(self, slots)

    monkeypatch.setattr(SampleReads, "take", slow_take)
    loader = small_loader(split, stop=10_000, num_threads=1)
    iterator = iter(loader)
    consumer = threading.Thread(target=lambda: next(iterator, None), name="consumer", daemon=True)
    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)  # the consumer learns of the cancellation
    consumer.start()
    while not loader_threads():
        time.sleep(0.01)
    closer = threading.Thread(target=loader.close)
    closer.start()
    time.sleep(0.1)
    release.set()
    closer.join(20)
    consumer.join(20)
    assert not closer.is_alive()
    assert not consumer.is_alive()
    assert loader_threads() == []


def test_iterating_again_begins_again(split: SplitIndex) -> None:
    with small_loader(split) as loader:
        first, second = list(loader), list(loader)
    assert len(first) == len(second) == 5
    assert torch.equal(first[4].micro_batches[1].images, second[4].micro_batches[1].images)
