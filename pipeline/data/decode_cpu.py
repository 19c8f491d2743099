"""Decoding with libjpeg-turbo, one sample a call on the loader's threads, into the micro-batch's own memory."""

from __future__ import annotations

from collections.abc import Sequence

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


class CpuBatchDecoder:
    """Decodes to RGB; see `decoder.Decoder`. A micro-batch's memory is its tensor.

    Args:
        crop_px: side of the square crops.
        device: where micro-batches are wanted.
    """

    def __init__(self, crop_px: int, device: torch.device) -> None:
        self._crop_px = crop_px
        self._device = device

    def begin(self, num_slots: int) -> Tensor:
        """Room for [B, 3, H, W] uint8, not cleared."""
        side = self._crop_px
        on_gpu = self._device.type == "cuda"
        return torch.empty((num_slots, 3, side, side), dtype=torch.uint8, pin_memory=on_gpu)

    def prepare(
        self, memory: Tensor, slot: int, content: bytes | bytearray, steps: Sequence[Step]
    ) -> DecodeFailure | None:
        """Decode and augment one sample into its slot."""
        photo = decode_crop(content, self._crop_px)
        if isinstance(photo, DecodeFailure):
            return photo
        for step in steps:
            if step.is_on[slot]:
                photo = apply_step(step.kind, photo, {name: float(drawn[slot]) for name, drawn in step.values.items()})
        # OpenCV takes the channels apart six times as fast as NumPy's copy of a transposed view
        cv2.split(photo, list(memory[slot].numpy()))
        return None

    def assemble(
        self, memory: Tensor, is_filled: Sequence[bool], steps: Sequence[Step]
    ) -> tuple[Tensor, dict[int, DecodeFailure]]:
        """Clear the slots without a sample, send to the device: [B, 3, H, W] uint8."""
        for slot in (slot for slot, filled in enumerate(is_filled) if not filled):
            memory[slot] = 0
        return memory.to(self._device, non_blocking=self._device.type == "cuda"), {}

    def close(self) -> None:
        """Hold nothing, free nothing."""


def decode_crop(content: bytes | bytearray, crop_px: int) -> npt.NDArray[np.uint8] | DecodeFailure:
    """Decode one JPEG of the data set's size: [H, W, 3] uint8 RGB."""
    failure = check_header(content, crop_px)
    if failure:
        return failure
    try:
        # it refuses what libjpeg merely warns of, as a scan that ends early; OpenCV and torchvision go on
        photo: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(content, "RGB")
    except ValueError as error:
        return DecodeFailure(UNDECODABLE, str(error).strip())
    return photo
