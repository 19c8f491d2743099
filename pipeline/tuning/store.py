"""Where the runs of a search leave their checkpoints, so that any node can go on from them.

On a file system that all nodes share, a run stands there from the beginning. Where the search goes to a remote store,
a run trains in a folder of its node, and what it saves is copied to the store.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pipeline.atomic_write import write_atomically
from pipeline.checkpoint import LATEST, latest_checkpoint
from pipeline.config.location import Location, RemotePath, parse_location
from pipeline.data.remote import open_filesystem
from pipeline.engine.run import CHECKPOINTS

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
        """Where the run trains; with a remote store it is there on one node only."""
        if isinstance(self.place, Path):
            return self.place
        scheme, _, rest = self.place.url.partition("://")
        return Path(tempfile.gettempdir()) / "facemill-tune" / scheme / rest

    def keep(self, checkpoint: Path) -> str:
        """Give a checkpoint of this run a name under which every node finds it."""
        if isinstance(self.place, Path):
            return str(checkpoint)
        filesystem = open_filesystem(self.place.scheme)
        goal = self.place / CHECKPOINTS / checkpoint.name
        if not filesystem.exists(goal.url):
            filesystem.put(str(checkpoint), goal.url, recursive=True)
        found = sorted(filesystem.ls(goal.parent.url, detail=False))
        for old in found[:-_NUM_KEPT]:
            filesystem.rm(old, recursive=True)
        for name in ("metrics.jsonl", "config.yaml"):
            filesystem.put(str(self.folder / name), (self.place / name).url)
        return goal.url

    def begin_from(self, checkpoint: str) -> None:
        """Put a kept checkpoint, of this run or another, where the run will find it; its own later ones stay.

        Where the other run has gone on and dropped it meanwhile, its newest takes its place.
        """
        source = _newest_if_gone(parse_location(checkpoint))
        goal = self.folder / CHECKPOINTS / source.name
        if goal.exists():
            return
        partial = goal.with_name(goal.name + ".tmp")
        shutil.rmtree(partial, ignore_errors=True)
        partial.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(source, RemotePath):
            open_filesystem(source.scheme).get(source.url, str(partial), recursive=True)
        else:
            shutil.copytree(source, partial)
        partial.rename(goal)
        latest = goal.parent / LATEST
        if not latest.exists() or latest.read_text().strip() < goal.name:
            write_atomically(latest, f"{goal.name}\n".encode())


def _newest_if_gone(checkpoint: Location) -> Location:
    if isinstance(checkpoint, Path):
        return checkpoint if checkpoint.exists() else latest_checkpoint(checkpoint.parent) or checkpoint
    filesystem = open_filesystem(checkpoint.scheme)
    if filesystem.exists(checkpoint.url):
        return checkpoint
    found = sorted(filesystem.ls(checkpoint.parent.url, detail=False))
    return checkpoint.parent / found[-1].rpartition("/")[2] if found else checkpoint
