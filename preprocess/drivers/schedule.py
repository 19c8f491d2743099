"""The tasks that every driver hands out, and in which order: slices of shards, and the end of a shard."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from preprocess.crops import CropMaker, CropOptions
from preprocess.plan import Plan, ShardPlan
from preprocess.shard import ShardContext, finish_shard, num_slices, process_slice, read_commit, slice_rows
from preprocess.workers import wait_for_any

OnPhotos = Callable[[int], None]
"""Told how many photos have been dealt with since it was last told."""


class Pool(Protocol):
    """Processes, here or on other machines."""

    def submit(self, task: Callable[..., None], /, *arguments: object) -> Future[None]:
        """Run a function of this module in one of them."""


def unfinished(plan: Plan, out: Path, numbers: Iterable[int] | None = None) -> list[int]:
    """Those of the shards `numbers`, None for all, that are not committed yet."""
    chosen = range(plan.num_shards) if numbers is None else numbers
    return [number for number in chosen if read_commit(out, plan.shard(number), plan.hash) is None]


def run_tasks(
    pool: Pool,
    plan: Plan,
    todo: list[int],
    context: ShardContext,
    weights: Path | None,
    window: int,
    on_photos: OnPhotos,
    ask: Callable[[], None],
) -> None:
    """Make shards, with `window` tasks under way: the next slices in order, and a shard's end once it can be made.

    `ask` is called between tasks, and raises when the work is to stop.
    """
    pending: dict[Future[None], tuple[ShardPlan, int]] = {}  # with the number of photos; 0 for a shard's end
    missing: dict[str, int] = {}
    slices = _slices(plan, todo)
    exhausted = False
    while True:
        while not exhausted and len(pending) < window:
            following = next(slices, None)
            if following is None:
                exhausted = True
                break
            shard, index = following
            missing.setdefault(shard.name, num_slices(shard))
            rows = slice_rows(shard, index)
            pending[pool.submit(slice_task, context, weights, shard.name, index, rows)] = (shard, len(rows))
        if not pending:
            return
        for future in wait_for_any(pending, ask):
            shard, num_photos = pending.pop(future)
            future.result()
            if num_photos == 0:
                continue
            on_photos(num_photos)
            missing[shard.name] -= 1
            if missing[shard.name] == 0:
                rows = shard.rows.take(pa.array(range(len(shard.rows))))  # a copy: see slice_rows
                whole = ShardPlan(shard.name, shard.split, rows)
                pending[pool.submit(finish_task, context, whole)] = (whole, 0)


def slice_task(context: ShardContext, weights: Path | None, shard_name: str, index: int, rows: pa.Table) -> None:
    """Make a slice, in a process of a pool."""
    process_slice(context, shard_name, index, rows, _maker(context.options.crop, weights))


def finish_task(context: ShardContext, shard: ShardPlan) -> None:
    """Put a shard together, in a process of a pool."""
    finish_shard(context, shard)


@lru_cache(maxsize=1)
def _maker(options: CropOptions, weights: Path | None) -> CropMaker:
    """Of this process: loading a detector's networks once takes long enough."""
    import cv2

    cv2.setNumThreads(1)
    pa.set_cpu_count(1)
    return CropMaker(options, weights)


def _slices(plan: Plan, todo: list[int]) -> Iterator[tuple[ShardPlan, int]]:
    for number in todo:
        shard = plan.shard(number)
        for index in range(num_slices(shard)):
            yield shard, index
