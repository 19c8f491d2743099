"""Decoding and augmentation with NVIDIA DALI, a micro-batch a call, on the CPU or (nvJPEG) on the rank's GPU.

This is the only module that imports DALI, when a decoder is first built. Order, bytes and augmentation parameters are
ours, so a run sees the same samples, augmented alike, whoever decodes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.config.augment import Augmentation
from pipeline.config.decoder import DaliDecoder
from pipeline.config.errors import UserError
from pipeline.data.augment import Step, draw_steps
from pipeline.data.decoder import DecodeFailure, check_header
from pipeline.data.photo_steps import affine_matrix, blur_window, crop_matrix
from pipeline.data.reader import UNDECODABLE
from pipeline.data.stage_times import ASSEMBLE, DECODE, StageTimes

_Bytes = npt.NDArray[np.uint8]
_Arguments = dict[str, npt.NDArray[Any] | np.generic]


class DaliBatchDecoder:
    """Decodes and augments; see `decoder.Decoder`. A micro-batch's memory is a list of its JPEGs.

    DALI raises for a whole micro-batch when one JPEG cannot be decoded, and its pipeline is spent. Then the pipeline is
    built anew and the micro-batch is halved until the culprit stands alone: about 2·log2(local_batch) runs, and
    every other sample keeps its pixels.

    Args:
        config: where to decode.
        operations: what the steps are drawn from: DALI's graph is laid out before the first of them.
        crop_px: side of the square crops.
        local_batch: slots of a micro-batch.
        device: where micro-batches are wanted.
        num_threads: DALI's own threads.
        times: where to count time.

    Raises:
        UserError: the configuration asks for a GPU and the run has none.
    """

    def __init__(
        self,
        config: DaliDecoder,
        operations: Sequence[Augmentation],
        crop_px: int,
        local_batch: int,
        device: torch.device,
        num_threads: int,
        times: StageTimes,
    ) -> None:
        if config.device == "gpu" and not torch.cuda.is_available():
            raise UserError("decoder.device", "gpu, but there is no CUDA device", "cpu", "set decoder.device=cpu")
        if config.device == "gpu" and device.type != "cuda":
            raise UserError("decoder.device", f"gpu, but training runs on {device}", "cpu", "set decoder.device=cpu")
        self._on_gpu = config.device == "gpu"
        self._crop_px, self._local_batch = crop_px, local_batch
        self._device = device
        self._num_threads = num_threads
        self._times = times
        # for the kinds and their arguments; the values do not matter
        self._example = draw_steps(operations, 0, np.zeros(1, np.int64), crop_px)
        black = np.zeros((crop_px, crop_px, 3), np.uint8)
        self._good_content: _Bytes = cv2.imencode(".jpg", black)[1].reshape(-1)
        self._pipeline: Any = self._build()

    def begin(self, num_slots: int) -> list[_Bytes | None]:
        """Room for the JPEGs."""
        return [None] * num_slots

    def prepare(
        self, memory: list[_Bytes | None], contents: Mapping[int, bytes | bytearray], steps: Sequence[Step]
    ) -> dict[int, DecodeFailure]:
        """Check the samples' headers; pixels are made later, a micro-batch at a time."""
        failures: dict[int, DecodeFailure] = {}
        for slot, content in contents.items():
            failure = check_header(content, self._crop_px)
            if failure is None:
                memory[slot] = np.frombuffer(content, np.uint8)
            else:
                failures[slot] = failure
        return failures

    def assemble(
        self, memory: list[_Bytes | None], is_filled: Sequence[bool], steps: Sequence[Step]
    ) -> tuple[Tensor, dict[int, DecodeFailure]]:
        """Decode and augment on DALI's device, hand over on ours: [B, 3, H, W] uint8, channels last."""
        side = self._crop_px
        made_on = self._device if self._on_gpu else torch.device("cpu")
        pin = self._device.type == "cuda" and not self._on_gpu
        images = torch.empty((len(memory), side, side, 3), dtype=torch.uint8, device=made_on, pin_memory=pin)
        contents = {slot: content for slot, content in enumerate(memory) if content is not None and is_filled[slot]}
        failures: dict[int, DecodeFailure] = {}
        with self._times.stage(DECODE):
            self._decode(list(contents.values()), steps, list(contents), images, failures)
        for slot in range(len(memory)):
            if slot not in contents or slot in failures:
                images[slot] = 0
        with self._times.stage(ASSEMBLE):
            return images.to(self._device, non_blocking=pin).permute(0, 3, 1, 2), failures

    def close(self) -> None:
        """Free DALI's threads and buffers."""
        self._pipeline = None

    def _build(self) -> Any:
        from nvidia.dali import pipeline_def

        # Threads of our own run ahead of the consumer, so DALI need not: one micro-batch in, the same one out.
        make = pipeline_def(
            _graph,
            enable_conditionals=True,
            batch_size=self._local_batch,
            num_threads=self._num_threads,
            device_id=self._device.index if self._on_gpu else None,
            prefetch_queue_depth=1,
            exec_pipelined=False,
            exec_async=False,
            exec_dynamic=False,
        )
        pipeline = make([step.kind for step in self._example], self._crop_px, self._on_gpu)
        pipeline.build()
        return pipeline

    def _decode(
        self,
        contents: list[_Bytes],
        steps: Sequence[Step],
        slots: list[int],
        images: Tensor,
        failures: dict[int, DecodeFailure],
    ) -> None:
        """Decode `contents`, which belong to `slots`, into `images[slots]`; write failures down by slot."""
        if not contents:
            return
        try:
            decoded = self._run(contents, steps, slots)
        except RuntimeError:
            self._pipeline = None  # its memory first: the new one may need it
            self._pipeline = self._build()
            if len(slots) == 1:
                # Where a good JPEG fails too, the sample is not to blame, and the run must not go on without samples.
                self._run([self._good_content], self._example, [0])
                # DALI's message holds its own call stack and no cause.
                failures[slots[0]] = DecodeFailure(UNDECODABLE, "DALI could not decode it")
                return
            half = len(slots) // 2
            self._decode(contents[:half], steps, slots[:half], images, failures)
            self._decode(contents[half:], steps, slots[half:], images, failures)
            return
        self._hand_over(decoded, slots, images)

    def _run(self, contents: list[_Bytes], steps: Sequence[Step], slots: list[int]) -> Any:
        """Run the pipeline once: DALI's tensor [n, H, W, 3] uint8, which the next run overwrites."""
        inputs: dict[str, Any] = {"encoded": contents}
        for number, step in enumerate(steps):
            inputs[f"{number} is_on"] = [np.bool_(step.is_on[slot]) for slot in slots]
            arguments = [_arguments(step, slot, self._crop_px) for slot in slots]
            for name in arguments[0]:
                inputs[f"{number} {name}"] = [of_slot[name] for of_slot in arguments]
        (batch,) = self._pipeline.run(**inputs)
        return batch.as_tensor()

    def _hand_over(self, decoded: Any, slots: list[int], images: Tensor) -> None:
        """Copy DALI's tensor into `images[slots]`."""
        is_whole = len(slots) == len(images)
        if not self._on_gpu:
            images.numpy()[slice(None) if is_whole else slots] = np.asarray(decoded)
            return
        from nvidia.dali.plugin.pytorch import feed_ndarray

        place = images if is_whole else images.new_empty((len(slots), *images.shape[1:]))
        stream = torch.cuda.current_stream(self._device)
        feed_ndarray(decoded, place, cuda_stream=stream)
        # DALI writes its buffer again at the next run: the copy on the device must be over by then.
        stream.synchronize()
        if not is_whole:
            images[torch.tensor(slots, device=images.device)] = place


def _arguments(step: Step, slot: int, side: int) -> _Arguments:
    """What DALI's operators take for a slot, by the names that `_apply` asks for."""
    values = step.at(slot)
    match step.kind:
        case "random_resized_crop":
            return {"matrix": crop_matrix(values, side).astype(np.float32)}
        case "affine":
            return {"matrix": affine_matrix(values).astype(np.float32)}
        case "posterize":
            return {"mask": np.uint8(256 - (1 << (8 - int(values["bits"]))))}
        case "blur":
            window = np.int32(blur_window(values["sigma_px"]))
            return {"sigma": np.float32(values["sigma_px"]), "window": window}
        case "low_resolution":
            return {"size": np.full(2, values["side_px"], np.float32)}
        case "jpeg":
            return {"quality": np.int32(values["quality"])}
        case "erase":
            return {
                "anchor": np.array([values["left"], values["top"]], np.float32),
                "shape": np.array([values["width"], values["height"]], np.float32),
                "fill": np.array([values["fill"]], np.float32),
            }
    return {name: np.float32(value) for name, value in values.items()}


def _graph(kinds: list[str], side: int, on_gpu: bool) -> Any:
    """DALI's graph: decode, then each step where it is on. DALI rewrites the source of this function for its `if`."""
    from nvidia.dali import fn, types

    encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
    # The pixels of libjpeg-turbo as far as nvJPEG can: smooth chroma upsampling, which the
    # hardware unit lacks, and no rotation by EXIF, which the CPU decoder does not do either.
    gpu_only: dict[str, Any] = {"jpeg_fancy_upsampling": True, "hw_decoder_load": 0.0} if on_gpu else {}
    images = fn.decoders.image(
        encoded, device="mixed" if on_gpu else "cpu", output_type=types.RGB, adjust_orientation=False, **gpu_only
    )
    for number in range(len(kinds)):
        is_on = fn.external_source(name=f"{number} is_on", dtype=types.BOOL, ndim=0)
        if is_on:
            images = _apply(kinds[number], number, images, side)
    return images


def _apply(kind: str, number: int, images: Any, side: int) -> Any:
    """One operation in DALI's terms; `photo_steps` does the same on the CPU."""
    from nvidia.dali import fn, types

    def given(name: str, ndim: int = 0, dtype: Any = types.FLOAT) -> Any:
        return fn.external_source(name=f"{number} {name}", dtype=dtype, ndim=ndim)

    warp = {"inverse_map": True, "interp_type": types.INTERP_LINEAR}
    resize = {"interp_type": types.INTERP_TRIANGULAR, "antialias": True}
    operations: dict[str, Callable[[], Any]] = {
        "flip": lambda: fn.flip(images, horizontal=1),
        # without a fill value, what lies outside is the nearest pixel
        "random_resized_crop": lambda: fn.warp_affine(images, matrix=given("matrix", 2), **warp),
        "affine": lambda: fn.warp_affine(images, matrix=given("matrix", 2), fill_value=0, **warp),
        "colour_jitter": lambda: fn.color_twist(
            images, brightness=given("brightness"), contrast=given("contrast"), saturation=given("saturation")
        ),
        "hsv": lambda: fn.hsv(images, hue=given("hue_degrees"), saturation=given("saturation"), value=given("value")),
        "grey": lambda: fn.hsv(images, saturation=0.0),
        "posterize": lambda: images & given("mask", 0, types.UINT8),
        "equalize": lambda: fn.equalize(images),
        "blur": lambda: fn.gaussian_blur(images, sigma=given("sigma"), window_size=given("window", 0, types.INT32)),
        "low_resolution": lambda: fn.resize(
            fn.resize(images, size=given("size", 1), **resize), size=[float(side), float(side)], **resize
        ),
        "jpeg": lambda: fn.jpeg_compression_distortion(images, quality=given("quality", 0, types.INT32)),
        "erase": lambda: fn.erase(
            images, anchor=given("anchor", 1), shape=given("shape", 1), axes=[1, 0], fill_value=given("fill", 1)
        ),
    }
    return operations[kind]()
