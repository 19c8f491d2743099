"""Splits without files, for what only looks at the index."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.data.manifest import SplitIndex


def make_split(photos: Sequence[int], seed: int = 0, samples_per_shard: int = 64) -> SplitIndex:
    """A split in which person i has photos[i] photos, shuffled over shards."""
    rng = np.random.default_rng(seed)
    label = rng.permutation(np.repeat(np.arange(len(photos)), photos)).astype(np.int32)
    rows = np.arange(len(label))
    shard = (rows // samples_per_shard).astype(np.int32)
    return SplitIndex(
        root=Path("data"),
        split="train",
        digest=f"digest {seed}",
        shards=[Path(f"train/train-{number:06d}.tar") for number in range(int(shard.max(initial=0)) + 1)],
        shard=shard,
        jpg_offset=rows * 4096,
        jpg_size=np.full(len(rows), 4000, np.int32),
        jpg_crc32=np.zeros(len(rows), np.uint32),
        label=label,
        plan_label=label.astype(np.int64),
        sample_id=rows,
        by_label=np.argsort(label, kind="stable").astype(np.int32),
        num_labels=len(photos),
    )
