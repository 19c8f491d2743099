"""What the loader asks of a decoder, and the way from a configuration to one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from pipeline.config.augment import Augmentation
from pipeline.config.decoder import CpuDecoder, DaliDecoder
from pipeline.data.augment import Step
from pipeline.data.jpeg import jpeg_size
from pipeline.data.reader import SIZE_MISMATCH, UNDECODABLE
from pipeline.data.stage_times import StageTimes


@dataclass(frozen=True)
class DecodeFailure:
    """Why a sample has no pixels: a reason of `reader.BadSample`, and its detail."""

    reason: str
    detail: str


class Decoder(Protocol):
    """Decodes in two stages: samples apart on many threads, then the micro-batch on one."""

    def begin(self, num_slots: int) -> Any:
        """Make what the samples of a micro-batch are prepared in."""

    def prepare(
        self, memory: Any, contents: Mapping[int, bytes | bytearray], steps: Sequence[Step]
    ) -> dict[int, DecodeFailure]:
        """Do what some samples need, in any thread.

        Args:
            memory: from `begin`, for this micro-batch.
            contents: JPEGs by slot in the micro-batch.
            steps: augmentation of the micro-batch.

        Returns:
            The slots whose samples have no pixels.
        """

    def assemble(
        self, memory: Any, is_filled: Sequence[bool], steps: Sequence[Step]
    ) -> tuple[Tensor, dict[int, DecodeFailure]]:
        """Make the micro-batch, always in one and the same thread.

        Args:
            memory: from `begin`, all samples prepared.
            is_filled: [B], False for a slot without a sample, whose pixels become 0.
            steps: as given to `prepare`.

        Returns:
            [B, 3, H, W] uint8 RGB on the target device, channels last in memory, and the slots found undecodable only
            now.
        """

    def close(self) -> None:
        """Free what is held; called when `assemble` has returned for the last time."""


def make_decoder(
    config: CpuDecoder | DaliDecoder,
    operations: Sequence[Augmentation],
    *,
    crop_px: int,
    local_batch: int,
    device: torch.device,
    num_threads: int,
    times: StageTimes,
) -> Decoder:
    """Build the decoder that a configuration names; `operations` are what its steps will be drawn from.

    Raises:
        UserError: it needs a device that is not there.
    """
    if isinstance(config, DaliDecoder):
        from pipeline.data.decode_dali import DaliBatchDecoder

        return DaliBatchDecoder(config, operations, crop_px, local_batch, device, num_threads, times)
    from pipeline.data.decode_cpu import CpuBatchDecoder

    return CpuBatchDecoder(crop_px, device, times)


def check_header(content: bytes | bytearray, crop_px: int) -> DecodeFailure | None:
    """Refuse what is no JPEG of the data set's crop size before any decoder sees it."""
    try:
        width, height = jpeg_size(content)
    except ValueError as error:
        return DecodeFailure(UNDECODABLE, str(error))
    if (width, height) != (crop_px, crop_px):
        return DecodeFailure(SIZE_MISMATCH, f"{width}x{height} px, expected {crop_px}x{crop_px}")
    return None
