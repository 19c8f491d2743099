"""Decoding with NVIDIA DALI, a micro-batch a call, on the CPU or (nvJPEG) on the rank's GPU.

This is the only module that imports DALI, when a decoder is first built. Order, bytes and augmentation parameters are
ours, so a run sees the same samples, flipped alike, whoever decodes.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.config.decoder import DaliDecoder
from pipeline.config.errors import UserError
from pipeline.data.decoder import DecodeFailure, check_header
from pipeline.data.reader import UNDECODABLE

_Bytes = npt.NDArray[np.uint8]


class DaliBatchDecoder:
    """Decodes to RGB; see `decoder.Decoder`.

    DALI raises for a whole micro-batch when one JPEG cannot be decoded, and its pipeline is spent. Then the pipeline is
    built anew and the micro-batch is halved until the culprit stands alone: about 2·log2(local_batch) runs, and
    every other sample keeps its pixels.

    Args:
        config: where to decode.
        crop_px: side of the square crops.
        local_batch: slots of a micro-batch.
        device: where micro-batches are wanted.
        num_threads: DALI's own threads.

    Raises:
        UserError: the configuration asks for a GPU and the run has none.
    """

    def __init__(
        self, config: DaliDecoder, crop_px: int, local_batch: int, device: torch.device, num_threads: int
    ) -> None:
        if config.device == "gpu" and not torch.cuda.is_available():
            raise UserError("decoder.device", "gpu, but there is no CUDA device", "cpu", "set decoder.device=cpu")
        if config.device == "gpu" and device.type != "cuda":
            raise UserError("decoder.device", f"gpu, but training runs on {device}", "cpu", "set decoder.device=cpu")
        self._on_gpu = config.device == "gpu"
        self._crop_px, self._local_batch = crop_px, local_batch
        self._device = device
        self._num_threads = num_threads
        black = np.zeros((crop_px, crop_px, 3), np.uint8)
        self._good_content: _Bytes = cv2.imencode(".jpg", black)[1].reshape(-1)
        self._pipeline: Any = self._build()

    def prepare(self, content: bytearray, flip: bool) -> _Bytes | DecodeFailure:
        """Check one sample's header; pixels are made later, a micro-batch at a time."""
        return check_header(content, self._crop_px) or np.frombuffer(content, np.uint8)

    def assemble(self, prepared: list[Any | None], flips: list[bool]) -> tuple[Tensor, dict[int, DecodeFailure]]:
        """Decode and flip on DALI's device, hand over on ours: [B, 3, H, W] uint8."""
        side = self._crop_px
        made_on = self._device if self._on_gpu else torch.device("cpu")
        pin = self._device.type == "cuda" and not self._on_gpu
        images = torch.zeros((len(prepared), 3, side, side), dtype=torch.uint8, device=made_on, pin_memory=pin)
        contents = {slot: content for slot, content in enumerate(prepared) if content is not None}
        failures: dict[int, DecodeFailure] = {}
        self._decode(list(contents.values()), flips, list(contents), images, failures)
        return images.to(self._device, non_blocking=pin), failures

    def close(self) -> None:
        """Free DALI's threads and buffers."""
        self._pipeline = None

    def _build(self) -> Any:
        from nvidia.dali import Pipeline, fn, types

        # Threads of our own run ahead of the consumer, so DALI need not: one micro-batch in, the same one out.
        pipeline = Pipeline(
            batch_size=self._local_batch,
            num_threads=self._num_threads,
            device_id=self._device.index if self._on_gpu else None,
            prefetch_queue_depth=1,
            exec_pipelined=False,
            exec_async=False,
            exec_dynamic=False,
        )
        with pipeline:
            encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
            flips = fn.external_source(name="flips", dtype=types.INT32, ndim=0)
            # The pixels of libjpeg-turbo as far as nvJPEG can: smooth chroma upsampling, which the
            # hardware unit lacks, and no rotation by EXIF, which torchvision does not do either.
            gpu_only: dict[str, Any] = {"jpeg_fancy_upsampling": True, "hw_decoder_load": 0.0} if self._on_gpu else {}
            images = fn.decoders.image(
                encoded,
                device="mixed" if self._on_gpu else "cpu",
                output_type=types.RGB,
                adjust_orientation=False,
                **gpu_only,
            )
            images = fn.transpose(fn.flip(images, horizontal=flips), perm=[2, 0, 1])
            pipeline.set_outputs(images)
        pipeline.build()
        return pipeline

    def _decode(
        self,
        contents: list[_Bytes],
        flips: list[bool],
        slots: list[int],
        images: Tensor,
        failures: dict[int, DecodeFailure],
    ) -> None:
        """Decode `contents`, which belong to `slots`, into `images[slots]`; write failures down by slot."""
        if not contents:
            return
        try:
            decoded = self._run(contents, [flips[slot] for slot in slots])
        except RuntimeError:
            self._pipeline = None  # its memory first: the new one may need it
            self._pipeline = self._build()
            if len(slots) == 1:
                # Where a good JPEG fails too, the sample is not to blame, and the run must not go on without samples.
                self._run([self._good_content], [False])
                # DALI's message holds its own call stack and no cause.
                failures[slots[0]] = DecodeFailure(UNDECODABLE, "DALI could not decode it")
                return
            half = len(slots) // 2
            self._decode(contents[:half], flips, slots[:half], images, failures)
            self._decode(contents[half:], flips, slots[half:], images, failures)
            return
        if len(slots) == len(images):
            images.copy_(decoded)
        else:
            images[torch.tensor(slots, device=images.device)] = decoded

    def _run(self, contents: list[_Bytes], flips: list[bool]) -> Tensor:
        """Run the pipeline once: [n, 3, H, W] uint8 on the device of decoding, a copy of our own."""
        from nvidia.dali.plugin.pytorch import feed_ndarray

        (batch,) = self._pipeline.run(encoded=contents, flips=[np.int32(flip) for flip in flips])
        decoded = batch.as_tensor()
        if self._on_gpu:
            images = torch.empty(decoded.shape(), dtype=torch.uint8, device=self._device)
            feed_ndarray(decoded, images, cuda_stream=torch.cuda.current_stream(self._device))
            # DALI writes its buffer again at the next run: the copy on the device must be over by then.
            torch.cuda.current_stream(self._device).synchronize()
            return images
        return torch.from_numpy(np.array(decoded, copy=True))
