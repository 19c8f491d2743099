"""Where the runs of a search leave their checkpoints, so that any node can go on from them.

On a file system that all nodes share, a run stands there from the beginning. Where the search goes to a remote store,
a run trains in a folder of its node, and what it saves is copied to the store.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.atomic_write import write_atomically
from pipeline.checkpoint import DESCRIPTION, LATEST, all_checkpoints, latest_checkpoint
from pipeline.config.errors import UserError
from pipeline.config.location import Location, RemotePath, parse_location
from pipeline.data.remote import open_filesystem
from pipeline.engine.run import CHECKPOINTS
from pipeline.tuning.run_folder import run_folder

_NUM_KEPT = 4
"""Checkpoints of a run that stay in a remote store: another trial may be about to copy one of the newest."""


@dataclass(frozen=True)
class RunStore:
    """The place of one run.

    Args:
        place: in the search's output.
    """

    place: Location

    @property
    def folder(self) -> Path:
        """Where the run trains."""
        return run_folder(self.place)

    def name_of(self, checkpoint: Path) -> str:
        """Under which every node finds a checkpoint of this run, once it is kept."""
        return str(checkpoint) if isinstance(self.place, Path) else (self.place / CHECKPOINTS / checkpoint.name).url

    def keep_newest(self, files: Sequence[str]) -> None:
        """Copy the newest checkpoint, and files of the run's folder, to a remote store; a folder needs no copy."""
        checkpoint = latest_checkpoint(self.folder / CHECKPOINTS)
        if isinstance(self.place, Path) or checkpoint is None:
            return
        filesystem = open_filesystem(self.place.scheme)
        goal = self.place / CHECKPOINTS / checkpoint.name
        for name in files:  # before the checkpoint, whose step they tell of
            filesystem.put_file(str(self.folder / name), (self.place / name).url)
        if not _is_whole(goal):
            # what makes it a checkpoint comes last, so that a copy that is cut off is none
            for file in sorted(checkpoint.iterdir(), key=lambda file: file.name == DESCRIPTION):
                filesystem.put_file(str(file), f"{goal.url}/{file.name}")
        for old in sorted(filesystem.ls(goal.parent.url, detail=False))[:-_NUM_KEPT]:
            filesystem.rm(old, recursive=True)

    def take_up(self, begin_from: str | None) -> None:
        """Put what this run has kept where it will find it; where it has saved nothing, another's checkpoint.

        Args:
            begin_from: kept checkpoint of another run, for a run that has none of its own. Where the other run has gone
                on and dropped it meanwhile, its newest takes its place.
        """
        own = latest_checkpoint(self.folder / CHECKPOINTS)
        if isinstance(self.place, RemotePath):
            kept = _newest(self.place / CHECKPOINTS)
            if kept is not None and (own is None or own.name < kept.name):
                self._copy(kept)
                filesystem = open_filesystem(self.place.scheme)
                for file in filesystem.ls(self.place.url, detail=False):
                    if not filesystem.isdir(file):
                        filesystem.get_file(file, str(self.folder / file.rpartition("/")[2]))
                return
        if own is None and begin_from is not None:
            source: Location | None = parse_location(begin_from)
            for _ in range(3):  # it may go while it is copied
                if source is None:
                    break
                if self._copy(source):
                    return
                source = _newest(source.parent)
            raise UserError(begin_from, "no longer there, nor a later one", "a checkpoint to go on from")

    def _copy(self, source: Location) -> bool:
        """Copy a checkpoint and point at it; whether it was whole."""
        goal = self.folder / CHECKPOINTS / source.name
        partial = goal.with_name(goal.name + ".tmp")
        for left in (partial, goal):
            shutil.rmtree(left, ignore_errors=True)
        partial.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError, shutil.Error):
            if isinstance(source, RemotePath):
                open_filesystem(source.scheme).get(source.url, str(partial), recursive=True)
            else:
                shutil.copytree(source, partial)
        if not (partial / DESCRIPTION).is_file() or not _is_whole(source):
            return False
        partial.rename(goal)
        write_atomically(goal.parent / LATEST, f"{goal.name}\n".encode())
        return True


def _is_whole(checkpoint: Location) -> bool:
    if isinstance(checkpoint, Path):
        return (checkpoint / DESCRIPTION).is_file()
    return bool(open_filesystem(checkpoint.scheme).exists((checkpoint / DESCRIPTION).url))


def _newest(checkpoints: Location) -> Location | None:
    if isinstance(checkpoints, Path):
        found: list[Location] = list(all_checkpoints(checkpoints))
    else:
        filesystem = open_filesystem(checkpoints.scheme)
        names = filesystem.ls(checkpoints.url, detail=False) if filesystem.exists(checkpoints.url) else []
        found = [checkpoints / name.rstrip("/").rpartition("/")[2] for name in sorted(names)]
    return next((place for place in reversed(found) if _is_whole(place)), None)
