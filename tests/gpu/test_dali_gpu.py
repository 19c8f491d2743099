"""DALI on the GPU: the pixels of the CPU decoder, made and kept on the device."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from pipeline.config.augment import Flip
from pipeline.config.decoder import CpuDecoder, DaliDecoder
from pipeline.data.decode_dali import DaliBatchDecoder
from pipeline.data.loader import StepBatch
from pipeline.data.manifest import SplitIndex, open_dataset
from pipeline.data.stage_times import StageTimes
from tests.datasets import encode_jpeg, make_dataset, random_image
from tests.loading import make_loader

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CROP_PX = 112


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> SplitIndex:
    root = tmp_path_factory.mktemp("gpu")
    return open_dataset(make_dataset(root, num_samples=64, num_identities=7, crop_px=CROP_PX)).split("train")


def load(split: SplitIndex, decoder: CpuDecoder | DaliDecoder) -> list[StepBatch]:
    with make_loader(
        split,
        global_batch=32,
        local_batch=16,
        stop=320,
        decoder=decoder,
        augment=(Flip(),),
        device=torch.device("cuda"),
        crop_px=CROP_PX,
    ) as loader:
        return list(loader)


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_pixels_are_those_of_the_cpu_decoder(split: SplitIndex, device: str) -> None:
    """All steps are held at a time, so a buffer that is used again under our hands would show."""
    batches = load(split, DaliDecoder(device=device))
    for batch, reference in zip(batches, load(split, CpuDecoder()), strict=True):
        assert batch.bad_samples == []
        for micro, expected in zip(batch.micro_batches, reference.micro_batches, strict=True):
            assert micro.images.is_cuda
            assert torch.equal(micro.labels, expected.labels)
            difference = (micro.images.int() - expected.images.int()).abs().float()
            # nvJPEG's inverse DCT and colour conversion round otherwise than libjpeg-turbo's.
            assert difference.mean() <= 2
            assert difference.flatten(1).mean(1).max() <= 3


def test_a_broken_jpeg_is_masked_and_its_neighbours_are_kept() -> None:
    rng = np.random.default_rng(0)
    contents = [bytearray(encode_jpeg(random_image(rng, CROP_PX))) for _ in range(16)]
    contents[5][contents[5].index(b"\xff\xdb") + 4] = 9  # a quantisation table that does not exist
    device = torch.device("cuda", torch.cuda.current_device())
    decoder = DaliBatchDecoder(DaliDecoder(device="gpu"), (), CROP_PX, 16, device, 2, StageTimes())
    memory = decoder.begin(16)
    assert decoder.prepare(memory, dict(enumerate(contents)), ()) == {}
    for _ in range(2):  # the pipeline built anew works like the first
        images, failures = decoder.assemble(memory, [True] * 16, ())
        assert {slot: failure.reason for slot, failure in failures.items()} == {5: "undecodable"}
        assert not images[5].any()
        for slot in set(range(16)) - {5}:
            expected = cv2.imdecode(np.frombuffer(contents[slot], np.uint8), cv2.IMREAD_COLOR_RGB)
            difference = np.abs(images[slot].permute(1, 2, 0).cpu().numpy().astype(int) - expected)
            assert difference.mean() <= 3
    decoder.close()
