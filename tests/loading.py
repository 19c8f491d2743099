"""Loaders for tests: one rank on the CPU, without augmentation, unless told otherwise."""

from __future__ import annotations

from typing import Any

import torch

from pipeline.config.decoder import CpuDecoder
from pipeline.data.loader import Loader
from pipeline.data.manifest import SplitIndex


def make_loader(split: SplitIndex, **options: Any) -> Loader:
    """A loader with some arguments chosen; `global_batch`, `local_batch`, `stop` and `crop_px` have to be."""
    defaults = {"seed": 0, "rank": 0, "world_size": 1, "start": 0}
    defaults |= {"decoder": CpuDecoder(), "augment": (), "device": torch.device("cpu")}
    return Loader(split, **(defaults | options))
