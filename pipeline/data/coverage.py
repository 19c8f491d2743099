"""Proof that an epoch sees every sample exactly once: training's own plan and reader, on all ranks, with a restart."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from rich.console import Console

from pipeline.data.manifest import SplitIndex
from pipeline.data.order import PlainOrder
from pipeline.data.reader import WITHDRAWN, BadSample, Reader
from pipeline.data.step_plan import EpochOrder, check_batches, plan_step

_CHUNK = 64


@dataclass(frozen=True)
class Coverage:
    """What an epoch was found to see."""

    num_samples: int
    """Of the split."""
    num_missing: int
    num_repeated: int
    """Samples seen more than once."""
    bad_samples: list[BadSample]
    """Seen, but unreadable: training masks and counts them. Withdrawn ones are none of these."""
    global_batch: int
    ranks: int
    """Of the epoch's first half; the second had one more."""

    @property
    def is_exact(self) -> bool:
        return not self.num_missing and not self.num_repeated

    @property
    def is_sound(self) -> bool:
        """Each sample was seen exactly once, and could be read."""
        return self.is_exact and not self.bad_samples


def check_split(
    split: SplitIndex, *, local_batch: int, ranks: int, workers: int, seed: int, advance: Callable[[int], None]
) -> Coverage:
    """`check_coverage` in plain order, with two micro-batches a rank and step where the split has as many.

    Args:
        split: the samples, one at least.
        local_batch: slots of a micro-batch; a small split makes it smaller.
        ranks: see there.
        workers: see there.
        seed: of the order.
        advance: see there.
    """
    micro = min(local_batch, len(split))
    return check_coverage(
        split,
        PlainOrder.create(split.digest, len(split), seed),
        global_batch=micro * max(1, min(2 * ranks, len(split) // micro)),
        local_batch=micro,
        ranks=ranks,
        workers=workers,
        advance=advance,
    )


def show(found: Coverage, name: str, console: Console) -> None:
    """Print a line for each unreadable sample, and the verdict on `name`."""

    def say(text: str, style: str | None = None) -> None:
        console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    for bad in found.bad_samples:
        say(f"sample {bad.sample_id} of {bad.shard}: {bad.reason}, {bad.detail}", "red")
    verdict = "each exactly once" if found.is_exact else f"{found.num_missing:,} never, {found.num_repeated:,} twice"
    unreadable = f", {len(found.bad_samples):,} unreadable" if found.bad_samples else ""
    say(
        f"{name}: an epoch of {found.num_samples:,} photos in batches of {found.global_batch}, {found.ranks} then "
        f"{found.ranks + 1} ranks: {verdict}{unreadable}"
    )


def check_coverage(
    split: SplitIndex,
    order: EpochOrder,
    *,
    global_batch: int,
    local_batch: int,
    ranks: int,
    workers: int,
    advance: Callable[[int], None],
) -> Coverage:
    """Go through an epoch as training does, and count how often each sample is read.

    The first half is planned for `ranks` ranks, the second, as after a restart, for one more with micro-batches of
    another size. Every photo is read and its CRC checked.

    Args:
        split: the samples.
        order: that visits each of them once an epoch.
        global_batch: slots of a step.
        local_batch: slots of a micro-batch.
        ranks: of the first half.
        workers: threads that read.
        advance: called with the number of photos read since the last call.

    Raises:
        UserError: batch sizes that do not fit each other or the split.
    """
    check_batches(order.num_rows, global_batch, local_batch)
    seen = np.zeros(len(split), np.int64)
    bad_samples: list[BadSample] = []
    end, position = order.epoch_samples, 0
    with Reader(split) as reader, ThreadPoolExecutor(workers) as pool:

        def read(rows: npt.NDArray[np.int64]) -> list[BadSample]:
            bad = [found for found in reader.read_many(rows) if isinstance(found, BadSample)]
            return [found for found in bad if found.reason != WITHDRAWN]

        while position < end:
            is_restarted = position >= end // 2
            world_size, micro = (ranks + 1, 1) if is_restarted else (ranks, local_batch)
            rows = []
            for rank in range(world_size):
                plan = plan_step(order, position, global_batch, micro, rank, world_size)
                for batch in plan.micro_batches:
                    # a filler is masked, and the last batch reaches into the next epoch
                    if not batch.is_filler:
                        rows.append(batch.rows[: max(0, end - batch.position)])
            own = np.concatenate(rows)
            seen += np.bincount(own, minlength=len(seen))
            own = own[reader.by_place(own)]
            for found in pool.map(read, [own[first : first + _CHUNK] for first in range(0, len(own), _CHUNK)]):
                bad_samples += found
            advance(len(own))
            position += global_batch
    num_repeated = int(np.count_nonzero(seen > 1))
    return Coverage(len(split), int(np.count_nonzero(seen == 0)), num_repeated, bad_samples, global_batch, ranks)
