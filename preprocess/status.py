"""`preprocess status`: how far a data set is, while it is made or after, from its files alone."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich import box
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipeline.config.errors import UserError
from pipeline.data.dataset_format import STATUS_REJECTED, shard_paths
from preprocess.plan import Plan, is_begun, load_plan
from preprocess.shard import SLICE_ROWS, num_slices, read_commit, slice_path
from preprocess.storage import work_folder

# A process that has written nothing for so long is taken for gone
_IDLE_S = 60.0


@dataclass(frozen=True)
class Status:
    """What the files say."""

    num_shards: int
    num_shards_done: int
    num_photos: int
    num_photos_done: int
    """In finished shards and in slices that wait for theirs."""
    num_processes: int
    """That have finished a slice within the last minute."""
    photos_per_s: float
    """Of these; 0 without any."""
    rejects: dict[str, int]
    """By reason, of what is done."""
    stage_s: dict[str, float]
    """Seconds by stage, of all processes; empty after the work."""
    is_finished: bool

    @property
    def eta_s(self) -> float | None:
        """Seconds to go at this rate; None where nothing moves or nothing is left."""
        left = self.num_photos - self.num_photos_done
        return left / self.photos_per_s if left and self.photos_per_s else None


def read_status(out: Path, plan: Plan, known: dict[str, Counter[str]] | None = None) -> Status:
    """Look at a data set's folder; takes no lock, and does not mind what others write meanwhile.

    Args:
        out: the folder.
        plan: of the data set.
        known: rejects of finished shards, which do not change: read once where one dictionary serves many looks.
    """
    num_done, photos_done = 0, 0
    rejects: Counter[str] = Counter()
    known = {} if known is None else known
    for number in range(plan.num_shards):
        shard = plan.shard(number)
        # slices go when their shard is finished: between two looks at the commit record, one of them counts
        waiting = Counter[str]()
        num_waiting = 0
        if read_commit(out, shard, plan.hash) is None:
            for index in range(num_slices(shard)):
                path = slice_path(out, shard.name, index)
                if path.is_file():
                    num_waiting += min(SLICE_ROWS, len(shard.rows) - index * SLICE_ROWS)
                    waiting += _rejects_of_slice(path)
            if read_commit(out, shard, plan.hash) is None:
                photos_done += num_waiting
                rejects += waiting
                continue
        num_done += 1
        photos_done += len(shard.rows)
        if shard.name not in known:
            known[shard.name] = _rejects(shard_paths(out, shard.split, shard.name)["manifest"])
        rejects += known[shard.name]
    now, active, rate = time.time(), 0, 0.0
    stage_s: Counter[str] = Counter()
    for path in (work_folder(out) / "times").glob("*.json"):
        try:
            found = json.loads(path.read_text())
        except (OSError, ValueError):  # it went meanwhile
            continue
        for name, seconds in found["seconds"].items():
            stage_s[name] += seconds
        if now - found["updated"] < _IDLE_S:
            active += 1
            rate += found["photos"] / max(1e-3, found["updated"] - found["started"])
    is_finished = (out / "dataset.json").is_file() and num_done == plan.num_shards
    return Status(
        plan.num_shards,
        num_done,
        len(plan.rows),
        photos_done,
        active,
        rate,
        dict(rejects.most_common()),
        {} if is_finished else dict(stage_s),
        is_finished,
    )


def open_plan(out: Path) -> Plan:
    """The plan of a data set that is made or under way.

    Raises:
        UserError: there is none.
    """
    if not is_begun(out):
        raise UserError(out, "no data set is made here", "a folder of `preprocess shard`", "preprocess shard SRC OUT")
    return load_plan(out)


def show(out: Path, status: Status) -> RenderableType:
    """A page for a console."""
    share = status.num_photos_done / max(1, status.num_photos)
    state = "finished" if status.is_finished else "under way" if status.num_processes else "at rest, unfinished"
    lines: list[RenderableType] = [
        Text(f"{out}: {state}"),
        ProgressBar(total=1.0, completed=share, width=40),
        Text(
            f"{status.num_photos_done:,} of {status.num_photos:,} photos ({share:.1%}), "
            f"{status.num_shards_done:,} of {status.num_shards:,} shards"
        ),
    ]
    if status.num_processes:
        eta = "" if status.eta_s is None else f", about {_duration(status.eta_s)} to go"
        lines.append(Text(f"{status.photos_per_s:,.1f} photos/s on {status.num_processes} processes{eta}"))
    elif not status.is_finished:
        lines.append(Text("nothing has moved for a minute: repeat the `preprocess shard` command to go on"))
    if status.rejects:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("rejected")
        table.add_column("photos", justify="right")
        table.add_column("share of what is done", justify="right")
        for reason, count in status.rejects.items():
            table.add_row(reason, f"{count:,}", f"{count / max(1, status.num_photos_done):.1%}")
        lines.append(table)
    total = sum(status.stage_s.values())
    if total:
        slowest = max(status.stage_s, key=lambda name: status.stage_s[name])
        shares = ", ".join(f"{name} {seconds / total:.0%}" for name, seconds in status.stage_s.items())
        lines.append(Text(f"most time goes to: {slowest} ({shares})"))
    return Group(*lines)


def _rejects(manifest: Path) -> Counter[str]:
    try:
        table = pq.read_table(manifest, columns=["status", "reject_reason"])
    except (OSError, pa.ArrowException):
        return Counter()
    return Counter(table.filter(pc.equal(table["status"], STATUS_REJECTED))["reject_reason"].to_pylist())


def _rejects_of_slice(path: Path) -> Counter[str]:
    try:
        with pa.memory_map(str(path)) as file:  # of the crops beside it nothing is read
            reasons = pa.ipc.open_file(file).read_all()["reject_reason"].to_pylist()
    except (OSError, pa.ArrowException, KeyError):  # its shard was finished meanwhile
        return Counter()
    return Counter(reason for reason in reasons if reason)


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"
