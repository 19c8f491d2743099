"""Decoding with torchvision (libjpeg-turbo), one sample a call on the loader's threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torchvision.io  # registers torch.ops.image
from torch import Tensor

from pipeline.data.decoder import DecodeFailure, check_header
from pipeline.data.reader import SIZE_MISMATCH, UNDECODABLE

_RGB = torchvision.io.ImageReadMode.RGB.value


class CpuBatchDecoder:
    """Decodes to RGB; see `decoder.Decoder`.

    Args:
        crop_px: side of the square crops.
        device: where micro-batches are wanted.
    """

    def __init__(self, crop_px: int, device: torch.device) -> None:
        self._crop_px = crop_px
        self._device = device

    def prepare(self, content: bytearray, flip: bool) -> npt.NDArray[np.uint8] | DecodeFailure:
        """Decode and flip one sample: [3, H, W] uint8."""
        failure = check_header(content, self._crop_px)
        if failure:
            return failure
        try:
            # The operator itself: its Python wrapper warns of its deprecation and costs a fifth of the rate. OpenCV
            # makes the same pixels, but gained nothing from a second thread and takes corrupt scans for good ones.
            image = torch.ops.image.decode_jpeg(torch.frombuffer(content, dtype=torch.uint8), _RGB, False)
        except RuntimeError as error:
            cause = str(error).splitlines()[0].rpartition(", ")[2]  # without the operator's place in its source
            return DecodeFailure(UNDECODABLE, cause)
        if image.shape != (3, self._crop_px, self._crop_px):
            return DecodeFailure(SIZE_MISMATCH, f"decoded to {tuple(image.shape)}")
        # NumPy copies on this thread; torch would wake its own threads for a copy of this size.
        pixels = image.numpy()
        return np.ascontiguousarray(pixels[:, :, ::-1] if flip else pixels)

    def assemble(self, prepared: list[Any | None], flips: list[bool]) -> tuple[Tensor, dict[int, DecodeFailure]]:
        """Stack and send to the device: [B, 3, H, W] uint8."""
        on_gpu = self._device.type == "cuda"
        side = self._crop_px
        images = torch.empty((len(prepared), 3, side, side), dtype=torch.uint8, pin_memory=on_gpu)
        view = images.numpy()
        for slot, pixels in enumerate(prepared):
            view[slot] = 0 if pixels is None else pixels
        return images.to(self._device, non_blocking=on_gpu), {}

    def close(self) -> None:
        """Hold nothing, free nothing."""
