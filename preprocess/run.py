"""What `preprocess shard` does: list, plan, let a driver make the shards, describe the data set, report."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from pipeline.config.errors import DataError, InUseError, UserError
from pipeline.data.dataset_format import DatasetInfo
from pipeline.data.manifest import open_dataset
from pipeline.data.tombstones import TOMBSTONES_FILE, read_tombstones
from preprocess.crops import NO_DETECTOR, CropMaker
from preprocess.dataset import finish_dataset, read_commits
from preprocess.detect.weights import kept_weights
from preprocess.drivers import DriverOptions
from preprocess.drivers.local import exclusive, run_local
from preprocess.drivers.schedule import OnPhotos, unfinished
from preprocess.extend import carry_tombstones, extend_plan
from preprocess.plan import (
    Plan,
    ShardOptions,
    build_plan,
    check_same_environment,
    check_same_plan,
    is_begun,
    load_plan,
    save_plan,
)
from preprocess.progress import show_progress
from preprocess.shard import SLICE_ROWS, num_slices, read_commit, slice_path
from preprocess.sources import find_source, list_source
from preprocess.sources.store import PhotoStore
from preprocess.storage import WORK_FOLDER, storage_error, work_folder
from preprocess.verify import find_faults


def shard(
    source: Path,
    layout: str,
    out: Path,
    options: ShardOptions,
    weights: Path | None,
    num_workers: int,
    max_rejects: float,
    driver: DriverOptions,
    extends: Path | None,
    console: Console,
) -> DatasetInfo | None:
    """Turn photos into a data set, or go on with one that was begun by the same command.

    Gives None where other pods still make shards of it.

    `layout` is one of `preprocess.sources.LAYOUTS`. `num_workers` 0 means one a core. `max_rejects` is the share of
    rejects beyond which all shards are made but the data set is not finished. `extends` is an earlier version whose
    labels, splits, keys and withdrawals stay.

    Raises:
        UserError: for everything the user can mend; `DataError`: too many rejects; `TemporaryError`: storage that
            fails, a worker process that died, another run that is working on it.
    """
    _check_places(source, out)
    if options.keep_jpegs and options.crop.detector != NO_DETECTOR:
        raise UserError("--keep-jpegs", "given without --already-aligned", "photos that are aligned crops")
    if num_workers < 0:
        raise UserError("--workers", str(num_workers), "a number of processes, or 0 for one a core")
    if not 0.0 <= max_rejects <= 1.0:  # also refuses nan
        raise UserError("--max-rejects", str(max_rejects), "a share, 0 to 1")
    num_workers = num_workers or os.cpu_count() or 1
    weights = weights or kept_weights(options.crop.detector)  # by path: other nodes have other caches
    # Loading the detector here finds bad weights before any work, and gives their hash to the plan.
    options = options.model_copy(update={"weights_sha256": CropMaker(options.crop, weights).weights_sha256})
    photos, listing, notes = _list_photos(source, layout, console)
    if options.crop.detector == NO_DETECTOR:
        notes += _unused(listing, weights)
    for note in notes:
        _say(console, note)
    plan = (
        build_plan(listing, options)
        if extends is None
        else extend_plan(listing, options, extends, lambda note: _say(console, note))
    )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(out, "cannot be made", error, "a folder for the data set") from None
    work = _Work(plan, photos, out, weights, num_workers, driver, extends, console)
    if driver.kind == "index":
        # pods start at any time, and several at once: each makes shards of its own, and none waits for another
        return _shard_as_pod(work, max_rejects)
    with exclusive(out):
        info = _begin(plan, out, console)
        if info is not None:
            return info
        start_s = time.monotonic()
        num_made = _make_shards(work, range(plan.num_shards))
        _check_rejects(plan, out, max_rejects)
        info = _finish(work)
    print_summary(console, info, num_made, time.monotonic() - start_s)
    return info


@dataclass(frozen=True)
class _Work:
    """What the making of shards needs."""

    plan: Plan
    photos: PhotoStore
    out: Path
    weights: Path | None
    num_workers: int
    driver: DriverOptions
    extends: Path | None
    console: Console


def _shard_as_pod(work: _Work, max_rejects: float) -> DatasetInfo | None:
    """Make one pod's shards; the pod that finds all of them made finishes the data set."""
    plan, out, driver = work.plan, work.out, work.driver
    info = _begin(plan, out, work.console)
    if info is not None:
        return info
    start_s = time.monotonic()
    num_made = _make_shards(work, range(driver.index, plan.num_shards, driver.num_pods))
    left = len(unfinished(plan, out))
    if left:
        _say(work.console, f"pod {driver.index}: done; {left:,} of {plan.num_shards:,} shards are left to other pods")
        return None
    _check_rejects(plan, out, max_rejects)
    try:
        # The lock is a courtesy: where it does not hold across nodes, two pods write the same files, each whole.
        with exclusive(out):
            info = _finish(work)
    except InUseError:  # should the other pod fail, it is its own index that is tried again
        _say(work.console, f"pod {driver.index}: done; another pod is finishing the data set")
        return None
    print_summary(work.console, info, num_made, time.monotonic() - start_s)
    return info


def _finish(work: _Work) -> DatasetInfo:
    """Describe the data set; what was withdrawn from its earlier version is so before anyone can read it."""
    if work.extends is not None:
        carry_tombstones(work.extends, work.plan, work.out)
    return finish_dataset(work.plan, work.out)


def _begin(plan: Plan, out: Path, console: Console) -> DatasetInfo | None:
    """Leave the plan in OUT, or go on with the one that stands there; gives a finished data set's description."""
    if not is_begun(out):
        save_plan(plan, out)
    found = load_plan(out)
    check_same_plan(found, plan, out)
    info = finished_info(plan, out)
    if info is not None:
        _sweep(out)
        _say(console, f"{out} is finished already: {_counts(info)}")
        _say(console, f"photos are not read again; to take changed ones in, delete {out} first")
        return info
    check_same_environment(found, out)
    # A data set that lost a file is unfinished until it is there again.
    (out / "dataset.json").unlink(missing_ok=True)
    return None


def _make_shards(work: _Work, numbers: Sequence[int]) -> int:
    """Let the driver make shards, with a bar; gives the number of photos it had to deal with."""
    plan, out = work.plan, work.out
    total, done = _count_photos(plan, numbers), _count_done(plan, out, numbers)
    if done:
        _say(work.console, f"going on: {done:,} of {total:,} photos were done before")
    with show_progress(work.console, "sharding", total, done) as advance:
        remaining = [total - done]

        def on_photos(count: int) -> None:  # slices that were found done pass by without counting again
            advance(min(count, remaining[0]))
            remaining[0] -= min(count, remaining[0])

        _drive(work, numbers, on_photos)
    return total - done


def _drive(work: _Work, numbers: Sequence[int], on_photos: OnPhotos) -> None:
    driver = work.driver
    if driver.kind == "ray":
        from preprocess.drivers.ray_cluster import run_ray

        run_ray(
            work.plan,
            work.photos,
            work.out,
            work.weights,
            work.num_workers,
            on_photos,
            address=driver.address,
            gpus_per_task=driver.gpus_per_task,
        )
        return
    run_local(work.plan, work.photos, work.out, work.weights, work.num_workers, on_photos, numbers)


def verify(out: Path, console: Console) -> bool:
    """Check a data set and print its faults, one a line; returns whether there are none.

    Raises:
        UserError: `out` is not a finished data set.
    """
    info = open_dataset(out).info
    num_shards = info.num_shards
    with show_progress(console, "verifying", num_shards, unit="shards") as advance:
        faults = find_faults(out, advance)
    for fault in faults:
        _say(console, str(fault), "red")
    kept = info.num_samples
    verdict = f"{len(faults):,} faults" if faults else "no faults"
    withdrawn = 0 if any(fault.shard == TOMBSTONES_FILE for fault in faults) else len(read_tombstones(out))
    withdrawn_text = f", {withdrawn:,} samples withdrawn" if withdrawn else ""
    _say(console, f"{out}: {verdict} in {num_shards:,} shards, {kept:,} photos{withdrawn_text}")
    damaged = sorted({fault.shard for fault in faults} & {s for split in info.splits.values() for s in split.shards})
    if damaged:
        files = ", ".join(f"commits/{shard}.json" for shard in damaged[:3]) + (", …" if len(damaged) > 3 else "")
        _say(console, f"to mend: delete {files} in {out}, then repeat the `preprocess shard` command that made it")
    return not faults


def check_options(**values: Any) -> ShardOptions:
    """`ShardOptions` from the command line's values.

    Raises:
        UserError: naming the first option out of range.
    """
    try:
        return ShardOptions.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = "--" + str(first["loc"][-1]).removesuffix("_px" if first["loc"][-1] == "size_px" else "").replace(
            "_", "-"
        )
        raise UserError(name, f"{first['input']!r}", first["msg"].removeprefix("Input should be ")) from None


def finished_info(plan: Plan, out: Path) -> DatasetInfo | None:
    """The description of a data set that is finished under this plan, or None."""
    if not (out / "dataset.json").is_file():
        return None
    info = open_dataset(out).info
    complete = all(read_commit(out, plan.shard(number), plan.hash) for number in range(plan.num_shards))
    return info if complete else None


def print_summary(console: Console, info: DatasetInfo, num_made: int, seconds_s: float) -> None:
    """The table at the end of a run."""
    table = Table(title="data set", show_header=False)
    found = sum(split.num_samples + split.num_rejected for split in info.splits.values())
    kept = info.num_samples
    table.add_row("photos found", f"{found:,}")
    table.add_row("kept", f"{kept:,} ({kept / found:.1%})")
    for reason, count in info.reject_counts.items():
        table.add_row(f"rejected: {reason}", f"{count:,}")
    for name, split in info.splits.items():
        table.add_row(f"{name}", f"{split.num_samples:,} photos of {split.num_identities:,} identities")
    table.add_row("bytes", f"{sum(split.num_bytes for split in info.splits.values()):,}")
    table.add_row("photos/s", f"{num_made / max(seconds_s, 1e-3):,.1f}")
    table.add_row("digest", info.digest[:16])
    console.print(table)


def _say(console: Console, text: str, style: str | None = None) -> None:
    """A line that may hold a path or a column's name: printed as it is, whatever brackets stand in it."""
    console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


def _list_photos(source: Path, layout: str, console: Console) -> tuple[PhotoStore, pa.Table, list[str]]:
    """List a source; of containers, which take a while to go through, with a bar."""
    found = find_source(source, layout)
    if not found.num_bytes:
        return list_source(found)
    with show_progress(console, "listing", found.num_bytes // 2**20, unit="MiB") as advance:
        shown = 0

        def on_bytes(done: int) -> None:
            nonlocal shown
            advance(done // 2**20 - shown)
            shown = done // 2**20

        return list_source(found, on_bytes)


def _unused(listing: pa.Table, weights: Path | None) -> list[str]:
    """Sentences about what was given and is not looked at with --already-aligned."""
    columns = [name for name in ("bbox", "landmarks") if listing[name].null_count < len(listing)]
    given = [f"the list's {name}" for name in columns] + (["--weights"] if weights else [])
    return [f"not used with --already-aligned: {', '.join(given)}"] if given else []


def _check_rejects(plan: Plan, out: Path, max_rejects: float) -> None:
    share = sum(commit.num_rejected for commit in read_commits(plan, out)) / len(plan.rows)
    if max_rejects < share < 1:  # without a single photo `finish_dataset` says more
        raise DataError(
            out,
            f"{share:.1%} of the photos were rejected",
            f"at most {max_rejects:.1%} (--max-rejects)",
            f"look at {out / 'rejects'}, then repeat the command with a larger --max-rejects to accept them",
        )


def _counts(info: DatasetInfo) -> str:
    return "; ".join(
        f"{name} {split.num_samples:,} photos of {split.num_identities:,} identities"
        for name, split in info.splits.items()
    )


def _check_places(source: Path, out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(out, "is a file", "a folder for the data set")
    if source.is_dir() and source.resolve() in (out.resolve(), *out.resolve().parents):
        raise UserError(out, "lies inside the photos' folder", "a folder elsewhere")
    if out.is_dir() and not is_begun(out):
        foreign = sorted(name for name in os.listdir(out) if name != WORK_FOLDER)
        if foreign:
            raise UserError(out, f"is not empty and not a data set (it holds {foreign[0]})", "a new or empty folder")


def _count_photos(plan: Plan, numbers: Sequence[int]) -> int:
    return sum(len(plan.shard(number).rows) for number in numbers)


def _count_done(plan: Plan, out: Path, numbers: Sequence[int]) -> int:
    """Photos of some shards that are committed or in slices that wait."""
    done = 0
    for number in numbers:
        shard_plan = plan.shard(number)
        if read_commit(out, shard_plan, plan.hash):
            done += len(shard_plan.rows)
            continue
        for index in range(num_slices(shard_plan)):
            if slice_path(out, shard_plan.name, index).is_file():
                done += min(SLICE_ROWS, len(shard_plan.rows) - index * SLICE_ROWS)
    return done


def _sweep(out: Path) -> None:
    """Remove what a run left that was killed after it had finished all but its own cleaning up."""
    shutil.rmtree(work_folder(out), ignore_errors=True)
