"""A bounded cache of blocks on a local disk, shared by all processes of a node.

A block is a file of its own that appears whole, by a rename; so a reader sees all of it or nothing, whoever was killed
when. The least recently used go first. A full disk costs the cache, not the run.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import threading
import uuid
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.errors import UserError

logger = logging.getLogger(__name__)

# Each process looks over the whole cache after it has written such a share of it, and makes room of another
_LOOK_SHARE = 1 / 64
_ROOM_SHARE = 1 / 8


@dataclass(frozen=True)
class CacheOptions:
    """Where and how much."""

    path: Path
    max_bytes: int
    block_bytes: int | None
    """None keeps whole shards."""


class BlockCache:
    """Blocks of one data set's shards; any number of threads and processes may use one folder.

    Args:
        options: see there.
        digest: of the data set; blocks of others in the same folder count for the bound and go like these.

    Raises:
        UserError: the folder cannot be made.
    """

    def __init__(self, options: CacheOptions, digest: str) -> None:
        self.block_bytes = options.block_bytes
        self._folder = options.path / "blocks"
        self._max_bytes = options.max_bytes
        size = "shards" if options.block_bytes is None else str(options.block_bytes)
        self._own = self._folder / f"{digest[:24]}-{size}"
        self._lock = threading.Lock()
        self._written = 0
        self._has_warned = False
        self.num_refused = 0
        """Blocks that could not be kept."""
        try:
            self._own.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                "data.cache.path", f"{options.path}: {error.strerror}", "a folder on a local disk"
            ) from None
        self._make_room()

    def read(self, shard: str, block: int, begin: int, end: int) -> bytes | None:
        """Bytes begin … end - 1 of a block, fewer where it ends; None where it is not kept."""
        try:
            descriptor = os.open(self._path(shard, block), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            content = os.pread(descriptor, end - begin, begin)
            os.utime(descriptor)  # the clock of who goes first
            return content
        except OSError:
            return None
        finally:
            os.close(descriptor)

    def write(self, shard: str, block: int, content: bytes) -> None:
        """Keep a block, if there is room on the disk."""
        path = self._path(shard, block)
        temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(content)
            os.replace(temporary, path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            self._refuse(error)
            return
        with self._lock:
            self._written += len(content)
            is_due = self._written > self._max_bytes * _LOOK_SHARE
            if is_due:
                self._written = 0
        if is_due:
            self._make_room()

    def drop(self, shard: str, block: int) -> None:
        """Forget a block."""
        self._path(shard, block).unlink(missing_ok=True)

    def _path(self, shard: str, block: int) -> Path:
        return self._own / shard / f"{block:08d}"

    def _refuse(self, error: OSError) -> None:
        with self._lock:
            self.num_refused += 1
            has_warned, self._has_warned = self._has_warned, True
        if not has_warned:
            remedy = "make room or lower data.cache.max_bytes" if error.errno == errno.ENOSPC else "see its permissions"
            logger.warning("%s keeps nothing for now (%s): %s", self._folder, error.strerror, remedy)

    def _make_room(self) -> None:
        """Remove the least recently used blocks, of all data sets, down to the bound and a little more."""
        try:
            handle = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            return
        try:
            # Waiting for another process that is at it keeps this one from writing on meanwhile: so the bound holds
            fcntl.flock(handle, fcntl.LOCK_EX)
            files = []
            for folder, _, names in os.walk(self._folder):
                for name in names:
                    try:
                        status = os.stat(os.path.join(folder, name))
                    except OSError:
                        continue
                    files.append((status.st_mtime_ns, status.st_size, os.path.join(folder, name)))
            total = sum(size for _, size, _ in files)
            if total <= self._max_bytes * (1 - _LOOK_SHARE * 4):
                return
            for _, size, path in sorted(files):
                if total <= self._max_bytes * (1 - _ROOM_SHARE):
                    break
                try:
                    os.unlink(path)
                    total -= size
                except OSError:
                    continue
        finally:
            os.close(handle)
