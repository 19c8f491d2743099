"""A model of unknown origin tried out, before it embeds a whole test set."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pipeline.config.errors import UserError
from pipeline.evaluate.embed import EmbedFn

_NUM_CROPS = 3
_MOST_DIFFERENCE = 0.1
"""Of an embedding's length: about a cosine of 0.995. Networks that are quantised as they run differ by less."""


def try_out(embed: EmbedFn, crop_px: int, device: torch.device, where: object) -> int:
    """Embed crops of noise together and one by one; gives the embedding's length D.

    Args:
        embed: the model.
        crop_px: side of the crops it takes.
        device: where it runs.
        where: what to name in messages.

    Raises:
        UserError: it fails, gives no matrix of floats, or embeds a photo differently beside others: figures would
            depend on the batch.
    """
    noise = np.random.RandomState(0).randint(0, 256, (_NUM_CROPS, 3, crop_px, crop_px)).astype(np.uint8)
    crops = torch.from_numpy(noise).to(device)
    with torch.inference_mode():
        together = embed(crops).to("cpu", torch.float64)
        parts = [embed(crops[number : number + 1]) for number in range(_NUM_CROPS)]
    if any(part.shape[1] != together.shape[1] for part in parts):
        found = f"embeddings of {together.shape[1]} numbers for {_NUM_CROPS} photos, of {parts[0].shape[1]} for one"
        raise UserError(where, found, "one length")
    alone = torch.cat([part.to("cpu", torch.float64) for part in parts])
    # Not finite ones compare as false here: photos will show whether they are, and then which.
    differs = (together - alone).norm(dim=1) > _MOST_DIFFERENCE * torch.maximum(together.norm(dim=1), alone.norm(dim=1))
    if bool(differs.any()):
        raise UserError(
            where,
            "the embedding of a photo changes with the other photos of its batch",
            "a model in inference mode",
            "batch norms and the like must use stored statistics",
        )
    return int(together.shape[1])


def require_rows(vectors: Tensor, num_photos: int, where: object) -> Tensor:
    """Give a model's output back when it is an embedding a photo.

    Raises:
        UserError: not a matrix of floats with as many rows as there were photos.
    """
    if vectors.ndim != 2 or len(vectors) != num_photos or vectors.shape[1] == 0 or not vectors.is_floating_point():
        kind = str(vectors.dtype).removeprefix("torch.")
        found = f"its output for {num_photos} photos is {kind} {list(vectors.shape)}"
        raise UserError(where, found, f"floats [{num_photos}, D], a row a photo")
    return vectors


def first_line(error: BaseException) -> str:
    """What an error of another library says, short enough for one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
