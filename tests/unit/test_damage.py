"""Every region of a shard truncated, flipped, zeroed, cut out: a named fault and counted slots, never a silent loss."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.config.decoder import CpuDecoder, DaliDecoder
from pipeline.config.errors import UserError
from pipeline.data.manifest import SplitIndex, open_dataset
from preprocess.verify import find_faults
from tests.datasets import make_dataset
from tests.loading import make_loader

CROP_PX = 32
ROW = 4  # of the sample in whose part of the tar the damage is done
BLOCK = 512


def flip(content: bytearray, start: int, stop: int) -> bytearray:
    content[(start + stop) // 2] ^= 0x10
    return content


def zero(content: bytearray, start: int, stop: int) -> bytearray:
    content[start:stop] = bytes(stop - start)
    return content


def truncate(content: bytearray, start: int, stop: int) -> bytearray:
    return content[: (start + stop) // 2]


def cut_out(content: bytearray, start: int, stop: int) -> bytearray:
    return content[:start] + content[stop:]


DAMAGES: list[Callable[[bytearray, int, int], bytearray]] = [flip, zero, truncate, cut_out]


def tar_regions(split: SplitIndex) -> dict[str, tuple[int, int]]:
    """First byte and end of each part of the tar around one sample."""
    jpg, size = int(split.jpg_offset[ROW]), int(split.jpg_size[ROW])
    padded = jpg + -(-size // BLOCK) * BLOCK
    return {
        "header of the label": (jpg - 3 * BLOCK, jpg - 2 * BLOCK),
        "label": (jpg - 2 * BLOCK, jpg - 2 * BLOCK + 1),
        "padding of the label": (jpg - 2 * BLOCK + 1, jpg - BLOCK),
        "header of the photo": (jpg - BLOCK, jpg),
        "start of the photo": (jpg, jpg + 2),
        "tables of the photo": (jpg + 20, jpg + 160),
        "scan of the photo": (jpg + size // 2, jpg + size // 2 + 64),
        "end of the photo": (jpg + size - 2, jpg + size),
        "padding of the photo": (jpg + size, padded),
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(
        tmp_path_factory.mktemp("data"), num_samples=24, num_identities=3, crop_px=CROP_PX, samples_per_shard=12
    )


def deliver(data: Path, decoder: CpuDecoder | DaliDecoder) -> tuple[dict[int, torch.Tensor], dict[int, str]]:
    """What an epoch gives: pixels by sample, and reasons by sample that is masked."""
    split = open_dataset(data).split("train")
    pixels: dict[int, torch.Tensor] = {}
    reasons: dict[int, str] = {}
    with make_loader(split, global_batch=8, local_batch=8, stop=24, decoder=decoder, crop_px=CROP_PX) as loader:
        for batch in loader:
            reasons |= {bad.sample_id: bad.reason for bad in batch.bad_samples}
            (micro,) = batch.micro_batches
            for slot, sample in enumerate(micro.sample_ids.tolist()):
                assert bool(micro.valid[slot]) is (sample not in reasons)
                if micro.valid[slot]:
                    pixels[sample] = micro.images[slot].clone()
    assert len(pixels) + len(reasons) == 24, "a sample is neither there nor counted"
    return pixels, reasons


@pytest.fixture(scope="module")
def whole(made: Path) -> dict[int, torch.Tensor]:
    pixels, reasons = deliver(made, CpuDecoder())
    assert reasons == {}
    assert find_faults(made, lambda count: None) == []
    return pixels


def attempt(act: Callable[[], Any]) -> tuple[Any, str]:
    """What it gives, or None and what the refusal says."""
    try:
        return act(), ""
    except UserError as error:
        return None, str(error)


REGIONS = [
    "header of the label",
    "label",
    "padding of the label",
    "header of the photo",
    "start of the photo",
    "tables of the photo",
    "scan of the photo",
    "end of the photo",
    "padding of the photo",
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("region", REGIONS)
def test_a_damaged_tar(
    tmp_path: Path, made: Path, whole: dict[int, torch.Tensor], region: str, damage: Callable[..., bytearray]
) -> None:
    data = Path(shutil.copytree(made, tmp_path / "data"))
    split = open_dataset(data).split("train")
    regions = tar_regions(split)
    assert list(regions) == REGIONS
    tar = split.shards[split.shard[ROW]]
    before = tar.read_bytes()
    after = bytes(damage(bytearray(before), *regions[region]))
    if after == before:  # zeros of a padding, zeroed
        assert damage is zero
        return
    tar.write_bytes(after)
    faults = find_faults(data, lambda count: None)
    assert faults
    assert all(fault.shard == tar.stem for fault in faults), [str(fault) for fault in faults]
    for decoder in (CpuDecoder(), DaliDecoder()):
        pixels, reasons = deliver(data, decoder)
        for sample, image in pixels.items():
            assert torch.equal(image, whole[sample]), f"sample {sample} has other pixels"
        assert set(reasons.values()) <= {"crc_mismatch", "short_read"}
        is_hit = "photo" in region and "header" not in region and "padding" not in region
        if is_hit:
            assert int(split.sample_id[ROW]) in reasons
        elif damage in (flip, zero):
            assert reasons == {}, "what readers by offset do not read does not harm them"
        else:
            assert reasons, "all that stood behind has moved or gone"


@pytest.mark.parametrize("damage", [*DAMAGES, None], ids=lambda damage: damage.__name__ if damage else "removed")
@pytest.mark.parametrize(
    "name", ["train/train-000000.idx", "manifest/train-000000.parquet", "commits/train-000000.json", "dataset.json"]
)
def test_a_damaged_file_beside_it(
    tmp_path: Path, made: Path, whole: dict[int, torch.Tensor], name: str, damage: Callable[..., bytearray] | None
) -> None:
    data = Path(shutil.copytree(made, tmp_path / "data"))
    (data / "index.arrow").unlink()  # it would save the day
    path = data / name
    if damage is None:
        path.unlink()
    else:
        content = bytearray(path.read_bytes())
        middle = len(content) // 2
        path.write_bytes(damage(content, middle - 10, middle + 10))
    faults, refusal = attempt(lambda: find_faults(data, lambda count: None))
    if refusal:
        assert name == "dataset.json"
        assert "dataset.json" in refusal
    else:
        assert faults, "nothing was found"
        if name != "dataset.json":
            assert any(fault.shard in ("train-000000", name) for fault in faults), [str(fault) for fault in faults]
    delivered, refusal = attempt(lambda: deliver(data, CpuDecoder()))
    if delivered is None:
        assert str(data) in refusal
        return
    pixels, reasons = delivered
    # what training does not read does it no harm; what it reads is right, or counted
    for sample, image in pixels.items():
        assert torch.equal(image, whole[sample])
    if name.endswith((".idx", "commits/train-000000.json")):
        assert reasons == {}


@pytest.mark.parametrize("damage", [*DAMAGES, None], ids=lambda damage: damage.__name__ if damage else "removed")
def test_a_damaged_index_is_made_again_or_found_out(
    tmp_path: Path, made: Path, whole: dict[int, torch.Tensor], damage: Callable[..., bytearray] | None
) -> None:
    """A file of another length is made again; wrong offsets in it are CRC mismatches, and verify finds them."""
    data = Path(shutil.copytree(made, tmp_path / "data"))
    path = data / "index.arrow"
    content = bytearray(path.read_bytes())
    if damage is None:
        path.unlink()
    else:
        offsets = np.ascontiguousarray(open_dataset(made).split("train").jpg_offset).tobytes()
        start = bytes(content).index(offsets)
        path.write_bytes(damage(content, start, start + len(offsets)))
    faults = find_faults(data, lambda count: None)
    assert [fault.shard for fault in faults] == (["index.arrow"] if damage in (flip, zero) else [])
    pixels, reasons = deliver(data, CpuDecoder())
    for sample, image in pixels.items():
        assert torch.equal(image, whole[sample])
    assert bool(reasons) is (damage in (flip, zero))


def test_a_removed_shard(tmp_path: Path, made: Path, whole: dict[int, torch.Tensor]) -> None:
    data = Path(shutil.copytree(made, tmp_path / "data"))
    split = open_dataset(data).split("train")
    split.shards[0].unlink()
    assert "train-000000" in {fault.shard for fault in find_faults(data, lambda count: None)}
    pixels, reasons = deliver(data, CpuDecoder())
    assert set(reasons) == set(split.sample_id[split.shard == 0].tolist())
    assert set(reasons.values()) == {"io_error"}
    assert all(torch.equal(image, whole[sample]) for sample, image in pixels.items())
