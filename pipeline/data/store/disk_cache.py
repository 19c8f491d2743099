"""A bounded folder of pieces of remote shards, shared by all processes of a node.

An entry is a file that holds a piece's bytes and nothing else; its name is a hash of what it is a piece of. It is
written aside, in room that is set apart for it before, then renamed, so what bears an entry's name has its length. It
is not synced to the disk: whoever reads a photo from it checks the CRC, and removes an entry that proves wrong.

    DIR/entries/ab/abcdef…   pieces; the time of change is the time of last use
    DIR/parts/…              pieces in the making, locked by their writers; what nobody locks was left by a killed one
    DIR/locks/00 … ff        locks, so that one process fetches a piece and the others wait for it
    DIR/usage                bytes set apart so far, under its own lock; at least what the folder holds
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.config.errors import UserError

# Room is made for more than one piece at a time, because finding the oldest means looking at all.
_KEPT_SHARE = 0.9
_logger = logging.getLogger(__name__)


class DiskCache:
    """Pieces by key; any number of threads and processes may use the folder.

    Args:
        path: the folder, made when it is missing.
        max_bytes: bound of entries and parts together.

    Raises:
        UserError: the folder cannot be made.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._entries, self._parts, self._locks = path / "entries", path / "parts", path / "locks"
        self._usage = path / "usage"
        self._max_bytes = max_bytes
        self._has_warned = False
        try:
            for folder in (self._entries, self._parts, self._locks):
                folder.mkdir(parents=True, exist_ok=True)
            self._usage.touch()
        except OSError as error:
            raise UserError(path, f"cannot be used as cache ({error.strerror})", "a folder to write to") from None

    def holds(self, key: str, size: int) -> bool:
        """Whether a piece of `size` bytes is there."""
        try:
            return self._entry(key).stat().st_size == size
        except OSError:
            return False

    def read(self, key: str, size: int, limits: Sequence[tuple[int, int]]) -> list[bytes] | None:
        """Read parts of a piece and mark it as used; None when it is not there, or not whole.

        Args:
            key: of the piece.
            size: its length in bytes.
            limits: first byte and the byte after the last of each part, within the piece.
        """
        try:
            descriptor = os.open(self._entry(key), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            if os.fstat(descriptor).st_size != size:
                return None
            parts = [os.pread(descriptor, stop - start, start) for start, stop in limits]
            with suppress(PermissionError):  # another user's: it goes earlier than it should
                os.utime(descriptor)
        except OSError:  # a disk that fails is one that has nothing
            return None
        finally:
            os.close(descriptor)
        is_whole = all(len(part) == stop - start for part, (start, stop) in zip(parts, limits, strict=True))
        return parts if is_whole else None

    def put(self, key: str, size: int, pieces: Iterable[bytes]) -> bool:
        """Keep a piece; False, with one warning a process, when the disk does not take it.

        Args:
            key: of the piece.
            size: its length in bytes, at most the bound.
            pieces: its bytes in order; what they raise is raised here, and nothing is kept.
        """
        part = self._parts / uuid.uuid4().hex
        try:
            descriptor = self._set_apart(part, size)
        except OSError as error:
            self._warn(error)
            return False
        try:
            done = 0
            for piece in pieces:
                try:
                    done += _write(descriptor, piece, done)
                except OSError as error:
                    self._warn(error)
                    return False
            if done != size:
                return False
            try:
                entry = self._entry(key)
                entry.parent.mkdir(exist_ok=True)
                os.replace(part, entry)
            except OSError as error:
                self._warn(error)
                return False
            return True
        finally:
            part.unlink(missing_ok=True)  # what it took stays counted until the next look at the whole folder
            os.close(descriptor)

    def remove(self, key: str) -> None:
        """Forget a piece whose bytes proved wrong."""
        self._entry(key).unlink(missing_ok=True)

    @contextmanager
    def fetching(self, key: str) -> Iterator[None]:
        """Hold the right to fetch a piece; others wait. The lock of a killed process is free at once."""
        try:
            descriptor = os.open(self._locks / _hash(key)[:2], os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:  # the folder is gone, or may not be written: each fetches for itself
            self._warn(error)
            yield
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _entry(self, key: str) -> Path:
        name = _hash(key)
        return self._entries / name[:2] / name

    def _set_apart(self, part: Path, size: int) -> int:
        """Make room, and a locked file that already has the whole length: what is counted is what is there."""
        with open(self._usage, "r+b", buffering=0) as usage:
            fcntl.flock(usage, fcntl.LOCK_EX)
            text = usage.read()
            taken = int(text) if text.isdigit() else self._make_room(self._max_bytes)
            if taken + size > self._max_bytes:
                taken = self._make_room(min(int(_KEPT_SHARE * self._max_bytes), self._max_bytes - size))
            if taken + size > self._max_bytes:
                raise OSError(0, "other pieces in the making fill it")
            # Counted before it is there: a process that is killed in between leaves too high a count, which is safe.
            os.pwrite(usage.fileno(), b"%020d" % (taken + size), 0)
            descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                os.posix_fallocate(descriptor, 0, size)
            except BaseException:
                part.unlink(missing_ok=True)
                os.close(descriptor)
                raise
            return descriptor

    def _make_room(self, limit: int) -> int:
        """Remove abandoned parts and the entries that were used longest ago; gives the bytes that are left."""
        taken = sum(_size_if_locked(part) for part in _files(self._parts))
        entries = sorted(
            (entry.stat().st_mtime_ns, entry.stat().st_size, entry.path)
            for folder in os.scandir(self._entries)
            for entry in _files(folder.path)
        )
        taken += sum(size for _, size, _ in entries)
        for _, size, path in entries:
            if taken <= limit:
                break
            Path(path).unlink(missing_ok=True)
            taken -= size
        return taken

    def _warn(self, error: OSError) -> None:
        if not self._has_warned:
            self._has_warned = True
            _logger.warning("%s: read without caching (%s)", self._entries.parent, error.strerror or error)


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _files(folder: str | os.PathLike[str]) -> list[os.DirEntry[str]]:
    """A folder's files with their status read; those that another process removes meanwhile are left out."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                entry.stat()
            except FileNotFoundError:
                continue
            found.append(entry)
    return found


def _size_if_locked(part: os.DirEntry[str]) -> int:
    """Bytes of a part that is being written; one that nobody holds is removed and counts nothing."""
    try:
        descriptor = os.open(part.path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return 0
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.fstat(descriptor).st_size
    else:
        Path(part.path).unlink(missing_ok=True)
        return 0
    finally:
        os.close(descriptor)


def _write(descriptor: int, content: bytes, offset: int) -> int:
    view = memoryview(content)
    while view:
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count
    return len(content)
