"""Decoding with libjpeg-turbo, one sample a call on the loader's threads, into the micro-batch's own memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg
import torch
from torch import Tensor

from pipeline.data.augment import Step
from pipeline.data.decoder import DecodeFailure, check_header
from pipeline.data.photo_steps import apply_step
from pipeline.data.reader import UNDECODABLE
from pipeline.data.stage_times import ASSEMBLE, AUGMENT, DECODE, StageTimes

_Memory = tuple[Tensor, npt.NDArray[np.uint8]]


class CpuBatchDecoder:
    """Decodes to RGB; see `decoder.Decoder`. A micro-batch's memory is its tensor, with a NumPy view beside it.

    Args:
        crop_px: side of the square crops.
        device: where micro-batches are wanted.
        times: where to count time.
    """

    def __init__(self, crop_px: int, device: torch.device, times: StageTimes) -> None:
        cv2.setNumThreads(1)  # the loader's threads are the parallelism; OpenCV's own would fight them for the cores
        self._times = times
        self._crop_px = crop_px
        self._device = device

    def begin(self, num_slots: int) -> _Memory:
        """Room for [B, H, W, 3] uint8, not cleared."""
        side = self._crop_px
        on_gpu = self._device.type == "cuda"
        images = torch.empty((num_slots, side, side, 3), dtype=torch.uint8, pin_memory=on_gpu)
        return images, images.numpy()

    def prepare(
        self, memory: _Memory, contents: Mapping[int, bytes | bytearray], steps: Sequence[Step]
    ) -> dict[int, DecodeFailure]:
        """Decode and augment samples into their slots."""
        photos = memory[1]
        failures: dict[int, DecodeFailure] = {}
        with self._times.stage(DECODE):
            for slot, content in contents.items():
                failure = decode_crop(content, photos[slot])
                if failure is not None:
                    failures[slot] = failure
        if steps:
            with self._times.stage(AUGMENT):
                for slot in contents.keys() - failures.keys():
                    self._augment(photos[slot], slot, steps)
        return failures

    def _augment(self, place: npt.NDArray[np.uint8], slot: int, steps: Sequence[Step]) -> None:
        photo = place
        for step in steps:
            if step.is_on[slot]:
                photo = apply_step(step.kind, photo, step.at(slot))
        if photo is not place:
            place[...] = photo

    def assemble(
        self, memory: _Memory, is_filled: Sequence[bool], steps: Sequence[Step]
    ) -> tuple[Tensor, dict[int, DecodeFailure]]:
        """Clear the slots without a sample, send to the device: [B, 3, H, W] uint8, channels last."""
        with self._times.stage(ASSEMBLE):
            for slot in (slot for slot, filled in enumerate(is_filled) if not filled):
                memory[1][slot] = 0
            images = memory[0].to(self._device, non_blocking=self._device.type == "cuda")
        return images.permute(0, 3, 1, 2), {}

    def close(self) -> None:
        """Hold nothing, free nothing."""


def decode_crop(content: bytes | bytearray, out: npt.NDArray[np.uint8]) -> DecodeFailure | None:
    """Decode one JPEG of the data set's size into `out`: [S, S, 3] uint8 RGB."""
    failure = check_header(content, len(out))
    if failure is None:
        try:
            # it refuses what libjpeg merely warns of, as a scan that ends early; OpenCV and torchvision go on
            simplejpeg.decode_jpeg(content, "RGB", buffer=out)
        except ValueError as error:
            failure = DecodeFailure(UNDECODABLE, str(error).strip())
    return failure
