"""Embeddings of a data set's photos by row of a split's index, without pair lists or mirror images."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pipeline.data.manifest import SplitIndex
from pipeline.data.reader import Reader
from pipeline.data.row_crops import read_row_crops

BATCH = 64


def embed_rows(
    model: nn.Module, split: SplitIndex, crop_px: int, rows: npt.NDArray[np.int64]
) -> Iterator[tuple[npt.NDArray[np.int64], Tensor]]:
    """Embed photos in batches, on the CPU, the model in eval mode.

    Args:
        model: uint8 [B, 3, H, W] to float [B, D].
        split: the photos' split.
        crop_px: side of its crops.
        rows: [n] of the split's index.

    Yields:
        Rows [b] of which a photo could be read, and their L2-normalised embeddings [b, D] float32. Photos that cannot
        be read are left out.
    """
    was_training = model.training
    model.eval()
    try:
        with Reader(split) as reader, torch.inference_mode():
            for found, crops in read_row_crops(reader, crop_px, rows, BATCH):
                if len(found):
                    embeddings = model(torch.from_numpy(crops).permute(0, 3, 1, 2)).float()
                    yield found, torch.nn.functional.normalize(embeddings)
    finally:
        model.train(was_training)
