"""`preprocess status`: how far the sharding of a data set is, whoever does it.

Everything is read from files that appear whole: commit records, manifests and waiting slices. No lock is taken, and
what vanishes between two looks (the slices of a shard that was just put together) is looked for again.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table

from pipeline.config.errors import UserError
from pipeline.data.manifest import STATUS_REJECTED, open_dataset, shard_paths
from preprocess.plan import Plan, ShardPlan, load_plan
from preprocess.shard import num_slices, read_commit, slice_path
from preprocess.timing import SliceTimes, read_recent

_RATE_WINDOW_S = 120.0
_SILENT_S = 60.0
_BAR_WIDTH = 24


@dataclass
class Status:
    """How far it is at one moment."""

    num_shards: int
    num_slices: int
    num_photos: int
    shards_done: int = 0
    slices_done: int = 0
    """Waiting, or in a shard that is done."""
    photos_done: int = 0
    rejects: Counter[str] = field(default_factory=Counter)
    is_finished: bool = False
    photos_per_s: float | None = None
    """Over the last two minutes of work, all workers together; None where nothing was recorded."""
    silent_s: float | None = None
    """Since a worker last finished a slice."""
    stages_s: dict[str, float] = field(default_factory=dict)
    """Seconds of work by stage, of the same slices."""

    @property
    def left_s(self) -> float | None:
        """Until all photos are done, at that rate."""
        left = self.num_photos - self.photos_done
        return left / self.photos_per_s if left and self.photos_per_s else None


class StatusReader:
    """Looks at a data set again and again: the plan, and what committed shards rejected, are read once.

    Raises:
        UserError: there is no plan in `out`.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.plan: Plan = load_plan(out)
        self._committed: dict[int, Counter[str]] = {}

    def look(self) -> Status:
        """The state now.

        Raises:
            UserError: a data set that calls itself finished is unreadable.
        """
        shards = [self.plan.shard(number) for number in range(self.plan.num_shards)]
        status = Status(len(shards), sum(num_slices(shard) for shard in shards), len(self.plan.rows))
        for number, shard in enumerate(shards):
            if not self._is_committed(number, shard):
                num_waiting, num_photos, rejects = self._waiting(shard)
                # its slices may have gone while they were counted, because it was put together
                if not self._is_committed(number, shard):
                    status.slices_done += num_waiting
                    status.photos_done += num_photos
                    status.rejects += rejects
                    continue
            status.shards_done += 1
            status.slices_done += num_slices(shard)
            status.photos_done += len(shard.rows)
            status.rejects += self._committed[number]
        status.is_finished = status.shards_done == len(shards) and (self.out / "dataset.json").is_file()
        if status.is_finished:
            status.rejects = Counter(open_dataset(self.out).info.reject_counts)
        _add_times(status, read_recent(self.out))
        return status

    def _is_committed(self, number: int, shard: ShardPlan) -> bool:
        if read_commit(self.out, shard, self.plan.hash) is None:
            self._committed.pop(number, None)
            return False
        if number not in self._committed:
            path = shard_paths(self.out, shard.split, shard.name)["manifest"]
            try:
                table = pq.read_table(path, columns=["status", "reject_reason"])
            except (OSError, pa.ArrowException) as error:
                found = f"unreadable manifest ({str(error).splitlines()[0]})"
                raise UserError(path, found, remedy=f"preprocess verify {self.out}") from None
            self._committed[number] = Counter(
                row["reject_reason"] for row in table.to_pylist() if row["status"] == STATUS_REJECTED
            )
        return True

    def _waiting(self, shard: ShardPlan) -> tuple[int, int, Counter[str]]:
        """Slices of a shard that wait for it: their number, their photos, and rejects by reason."""
        num_waiting = num_photos = 0
        rejects: Counter[str] = Counter()
        for index in range(num_slices(shard)):
            path = slice_path(self.out, shard.name, index)
            try:
                with pa.memory_map(str(path)) as file:  # the crops beside the column are not read
                    column = pa.ipc.open_file(file).read_all()["reject_reason"].to_pylist()
            except (OSError, pa.ArrowException):
                continue
            num_waiting += 1
            num_photos += len(column)
            rejects.update(reason for reason in column if reason)
        return num_waiting, num_photos, rejects


def render(status: Status, out: Path) -> Table:
    """The table that `preprocess status` shows."""
    state = "finished" if status.is_finished else "not finished"
    table = Table(title=f"{out}: {state}", show_header=False)
    for name, done, total in (
        ("shards", status.shards_done, status.num_shards),
        ("slices", status.slices_done, status.num_slices),
        ("photos", status.photos_done, status.num_photos),
    ):
        table.add_row(name, f"{done:,} of {total:,} ({done / max(total, 1):.1%})")
    if status.photos_per_s is not None and not status.is_finished:
        table.add_row("photos/s", f"{status.photos_per_s:,.1f}")
        if status.left_s is not None:
            table.add_row("time left", str(timedelta(seconds=round(status.left_s))))
    if status.silent_s is not None and status.silent_s > _SILENT_S and not status.is_finished:
        table.add_row("last sign of work", f"{timedelta(seconds=round(status.silent_s))} ago")
    for reason, count in sorted(status.rejects.items(), key=lambda each: (-each[1], each[0])):
        table.add_row(f"rejected: {reason}", f"{count:,}")
    total_s = sum(status.stages_s.values())
    slowest = max(status.stages_s, key=lambda stage: status.stages_s[stage], default="")
    for stage, seconds_s in status.stages_s.items():
        share = seconds_s / total_s if total_s else 0.0
        mark = " (slowest)" if stage == slowest and total_s else ""
        table.add_row(f"time: {stage}", f"{'█' * round(share * _BAR_WIDTH)} {share:.1%}{mark}")
    return table


def _add_times(status: Status, slices: list[SliceTimes]) -> None:
    """Rate and stages of the last slices; by their own clock, so that a stopped run keeps its rate."""
    if not slices:
        return
    last_s = slices[-1].end_s
    recent = [each for each in slices if each.end_s > last_s - _RATE_WINDOW_S]
    span_s = last_s - min(each.end_s - each.wall_s for each in recent)
    status.photos_per_s = sum(each.num_photos for each in recent) / max(span_s, 1e-3)
    status.silent_s = max(0.0, time.time() - last_s)
    totals: Counter[str] = Counter()
    for each in recent:
        totals.update(each.stages_s)
    status.stages_s = dict(totals)
