"""Writes checkpoints: whole or not at all, by all ranks together, and beside training where asked.

The training loop waits only until its tensors are copied. A thread of each rank then writes the copies, in a process
group of its own, because collectives of one group must come in one order. `latest` moves when everything is on disk.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import cast

import torch
import torch.distributed as c10d
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor

from pipeline import dist
from pipeline.atomic_write import sync_folder, write_atomically
from pipeline.checkpoint import (
    BEST,
    DESCRIPTION,
    LATEST,
    CheckpointInfo,
    all_checkpoints,
    best_checkpoint,
    local_rows,
    rank_mesh,
    read_info,
    shard_rows,
    silence_dcp,
)
from pipeline.config.errors import UserError
from pipeline.config.location import nearest_existing

_PATIENCE_S = 60.0


class SaveError(Exception):
    """A checkpoint could not be written; the one before it is untouched. Raised on all ranks of the group."""


def save(
    directory: Path,
    tensors: Mapping[str, Tensor],
    info: CheckpointInfo,
    keep: int,
    is_best: bool = False,
    group: c10d.ProcessGroup | None = None,
) -> Path:
    """Write `step-N`, point `latest` at it, and remove what need not stay. Collective on all ranks.

    The newest `keep`, milestones and the best one stay.

    Args:
        directory: of the checkpoints.
        tensors: replicated ones, of which one copy is written, and DTensors, of which each rank writes its part.
        info: what they belong to.
        keep: how many of the newest stay.
        is_best: point `best` at it, too.
        group: all ranks, able to exchange CPU tensors; None for the default group.

    Raises:
        SaveError: a rank could not write.
    """
    final = directory / f"step-{info.step:08d}"
    temporary = final.with_name(final.name + ".tmp")

    def begin() -> None:
        directory.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()

    def publish() -> None:
        description = json.dumps(info.model_dump(mode="json"), indent=1, sort_keys=True)
        write_atomically(temporary / DESCRIPTION, description.encode())
        if final.exists():  # left by a run that went further than the checkpoint this one began from
            os.rename(final, final.with_name(final.name + ".old.tmp"))
        os.rename(temporary, final)
        sync_folder(directory)
        for name in (LATEST, BEST) if is_best else (LATEST,):
            write_atomically(directory / name, f"{final.name}\n".encode())
        _prune(directory, final, keep)

    try:
        _on_first_rank(begin, group)
        silence_dcp()
        is_alone = dist.world_size() == 1
        writer = dcp.FileSystemWriter(temporary)
        try:
            dcp.save(dict(tensors), storage_writer=writer, no_dist=is_alone, process_group=group)
        except CheckpointException as error:
            raise SaveError(_reason(error)) from error
        _on_first_rank(publish, group)
    except SaveError:
        if dist.rank() == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    return final


class _Save(threading.Thread):
    """A save under way. A daemon: a rank that fails must not wait for a thread that waits for other ranks."""

    def __init__(self, path: Path, work: Callable[[], object]) -> None:
        super().__init__(name="checkpoint", daemon=True)
        self.path, self._work = path, work
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self._work()
        except BaseException as error:  # it is raised where somebody waits for it
            self.error = error


class CheckpointWriter:
    """Saves beside training. Construction and its methods are collective on all ranks.

    Args:
        directory: of the checkpoints.
        keep: how many of the newest stay.
        max_failures: so many failed saves in a row are an error.
        say: called on all ranks with lines for the user.
        on_saved: called on all ranks when a checkpoint is on disk and `latest` names it.
    """

    def __init__(
        self,
        directory: Path,
        keep: int,
        max_failures: int,
        say: Callable[[str], None],
        on_saved: Callable[[], None],
    ) -> None:
        self._directory, self._keep, self._max_failures = directory, keep, max_failures
        self._say, self._on_saved = say, on_saved
        self._group = cast(c10d.ProcessGroup, c10d.new_group(backend="gloo")) if dist.world_size() > 1 else None
        self._mesh = rank_mesh(torch.device("cpu"))
        self._copies: dict[str, Tensor] = {}
        self._running: _Save | None = None
        self._num_failures = 0
        silence_dcp()

    def save(self, tensors: Mapping[str, Tensor], info: CheckpointInfo, is_best: bool = False) -> float:
        """Copy the tensors and begin to write them, after the save before has ended; see `save` for the arguments.

        Returns:
            Seconds that the caller was kept waiting.

        Raises:
            UserError: too many saves failed in a row, this one not counted; on all ranks.
        """
        began = time.monotonic()
        self.wait()
        copies = {name: self._copy(name, tensor) for name, tensor in tensors.items()}
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # the copies to pinned memory are under way until here
        self._running = _Save(
            self._directory / f"step-{info.step:08d}",
            lambda: save(self._directory, copies, info, self._keep, is_best, self._group),
        )
        self._running.start()
        return time.monotonic() - began

    def wait(self) -> None:
        """Wait for the save under way, if there is one.

        Raises:
            UserError: too many saves failed in a row; on all ranks.
        """
        running, self._running = self._running, None
        if running is None:
            return
        running.join()
        if running.error is None:
            self._num_failures = 0
            self._on_saved()
            return
        if not isinstance(running.error, SaveError):
            raise running.error
        self._num_failures += 1
        # torch's archive writer hides the system's reason, which mostly is a full disk
        free_mib = shutil.disk_usage(nearest_existing(running.path.parent)).free >> 20
        found = f"could not be saved ({running.error}), {self._num_failures} in a row, {free_mib:,} MiB free there"
        if self._num_failures >= self._max_failures:
            raise UserError(running.path, found, remedy="make room or mend the disk; the one before it stands")
        self._say(f"warning: {running.path} {found}; training goes on, the one before it stands")

    def finish(self) -> None:
        """Wait for the last save of a run, which has to succeed.

        Raises:
            UserError: it failed; on all ranks.
        """
        self._max_failures = 1
        self.wait()

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """On the way out of a failed run, give a save under way some time to end: what it holds is good."""
        if self._running is not None:
            self._running.join(_PATIENCE_S)

    def _copy(self, name: str, tensor: Tensor) -> Tensor:
        """A copy in host memory that stays as it is while training goes on, in memory that the next save uses again."""
        local = local_rows(tensor)
        copy = self._copies.get(name)
        if copy is None or copy.shape != local.shape or copy.dtype != local.dtype:
            copy = torch.empty(local.shape, dtype=local.dtype, pin_memory=local.is_cuda)
            self._copies[name] = copy
        copy.copy_(local.detach(), non_blocking=True)
        return shard_rows(copy, len(tensor), self._mesh) if isinstance(tensor, DTensor) else copy


def _on_first_rank(action: Callable[[], None], group: c10d.ProcessGroup | None) -> None:
    """Let rank 0 do something with files; all hear how it went.

    Raises:
        SaveError: it failed there; on all ranks.
    """
    outcome: list[str | None] = [None]
    if dist.rank() == 0:
        try:
            action()
        except OSError as error:
            outcome[0] = str(error)
    if dist.world_size() > 1:
        c10d.broadcast_object_list(outcome, src=0, group=group, device=torch.device("cpu"))
    if outcome[0] is not None:
        raise SaveError(outcome[0])


def _reason(error: CheckpointException) -> str:
    """What went wrong first, in a line."""
    rank, (cause, _) = min(error.failures.items())
    lines = str(cause).strip().splitlines()
    text = lines[0] if lines else type(cause).__name__
    return text if dist.world_size() == 1 else f"rank {rank}: {text}"


def _prune(directory: Path, newest: Path, keep: int) -> None:
    """Keep `newest` and some before it. Later steps are another run's future, left when this one began earlier."""
    best = best_checkpoint(directory)
    finished = [path for path in all_checkpoints(directory) if path.name <= newest.name]
    kept = {*finished[-keep:], *(path for path in finished if path == best or read_info(path).is_milestone)}
    for path in set(directory.glob("step-*")) - kept:
        shutil.rmtree(path, ignore_errors=True)
