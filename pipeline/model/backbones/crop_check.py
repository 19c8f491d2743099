"""Whether a network can take crops of a size; refusals that say what it can take."""

from __future__ import annotations

import torch
from torch import nn

from pipeline.config.errors import UserError


def features_of_crop(network: nn.Module, name: str, crop_px: int) -> int:
    """How many numbers `network` gives for a crop; found by running it.

    Raises:
        UserError: it fails on crops of `crop_px`, or gives something other than a vector.
    """
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad():
            output = network(torch.zeros(1, 3, crop_px, crop_px))
    except (RuntimeError, ValueError, AssertionError, IndexError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise UserError("backbone.name", f"{name} cannot take crops of {crop_px} px ({reason})") from error
    finally:
        network.train(was_training)
    if not isinstance(output, torch.Tensor) or output.ndim != 2:
        raise UserError("backbone.name", f"{name} gives no vector of features", "a classifier")
    return output.shape[1]


def check_multiple(crop_px: int, factor: int, kind: str) -> None:
    """Refuse crops that do not divide.

    Raises:
        UserError: `crop_px` is no multiple of `factor`.
    """
    if crop_px % factor:
        raise UserError(
            "backbone.kind",
            f"{kind} cannot take crops of {crop_px} px",
            f"a multiple of {factor}",
            f"make the data set with --size {crop_px // factor * factor + factor}, or choose a torchvision backbone",
        )


def check_least(crop_px: int, least_px: int, kind: str) -> None:
    """Refuse crops that are too small.

    Raises:
        UserError: `crop_px` is less than `least_px`.
    """
    if crop_px < least_px:
        raise UserError(
            "backbone.kind",
            f"{kind} cannot take crops of {crop_px} px",
            f"{least_px} px or more",
            "make the data set with a larger --size, or choose another backbone",
        )
