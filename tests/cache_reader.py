"""What a process of the tests of shared caches does; here, so that a spawned one imports no more than it needs."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.config.cache import CacheConfig
from pipeline.data.manifest import open_dataset
from pipeline.data.reader import BadSample, Reader


def read_all(url: str, cache: CacheConfig, seed: int, has_begun: Any, results: Any) -> None:
    """Read each photo thrice in an order of its own; gives the rows whose bytes were not right."""
    split = open_dataset(url, cache).split("train")
    rows = np.random.default_rng(seed).permutation(np.tile(np.arange(len(split)), 3))
    wrong = []
    with Reader(split) as reader:
        for first in range(0, len(rows), 20):
            for row, content in zip(rows[first:], reader.read_many(rows[first : first + 20]), strict=False):
                if isinstance(content, BadSample):
                    wrong.append((int(row), content.detail))
            has_begun.set()
        results.put((wrong, reader.stats))
