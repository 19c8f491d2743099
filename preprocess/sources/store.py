"""Where a photo's bytes come from: a file of its own, or a part of a container.

A listing names each photo by its `source`: a path, or an address in a container such as `train.rec#12345`,
`photos.tar!a/b.jpg` or `part.parquet#17`. A store turns that into bytes. It is picklable and small: it goes to every
worker, on this machine or another, and opens its files there.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from pipeline.config.errors import UserError
from preprocess.photo import read_file
from preprocess.storage import GOES_ON, storage_error

_MAX_OPEN_CONTAINERS = 64


class Stamp(NamedTuple):
    """What changes when a file does."""

    num_bytes: int
    mtime_ns: int


class Place(NamedTuple):
    """Where one photo stands."""

    source: str
    """As the listing and the manifest name it."""
    offset: int | None = None
    """In bytes from the start of the container; None where the address is all that is needed."""
    num_bytes: int | None = None
    """In the container, framing included."""


class PhotoStore(Protocol):
    """What sharding knows of a source when it reads photos."""

    def read(self, place: Place) -> bytes:
        """The bytes of one encoded photo.

        Raises:
            preprocess.photo.Reject: this one photo cannot be used.
            UserError: the source as a whole cannot be read, or is no longer what was listed.
        """
        ...

    def stamp(self, source: str) -> Stamp | None:
        """Of the file that holds a photo, as it is now; None where there is none."""
        ...

    def check_reachable(self, missing: Sequence[str]) -> None:
        """Tell photos that are missing from a source that is missing: an unmounted disk must not become rejects.

        Raises:
            UserError: what holds the photos `missing` can no longer be listed.
        """
        ...


@dataclass(frozen=True)
class PhotoFiles:
    """Photos that are files of their own."""

    root: Path
    """Where relative paths start."""
    identity_folders: bool = False
    """Whether sources begin with their identity's folder below `root`, as those of a list need not."""

    def read(self, place: Place) -> bytes:
        return read_file(os.path.join(self.root, place.source))

    def stamp(self, source: str) -> Stamp | None:
        try:
            return file_stamp(os.path.join(self.root, source))
        except (OSError, ValueError):  # whether that is a reject is decided by reading it
            return None

    def check_reachable(self, missing: Sequence[str]) -> None:
        folders = {str(self.root) for _ in missing}
        if self.identity_folders:
            folders |= {os.path.join(self.root, source.split("/", 1)[0]) for source in missing}
        for folder in sorted(folders):
            try:
                with os.scandir(folder) as entries:
                    next(entries, None)
            except OSError as error:
                remedy = f"was it unmounted, moved or deleted? {GOES_ON}"
                raise storage_error(folder, "cannot be listed any more", error, remedy=remedy) from None


@dataclass(frozen=True)
class ContainerPhotos:
    """What all stores of containers share: a container that is missing or changed stops the run, by name."""

    root: Path
    """Where the containers' relative names start."""
    stamps: Mapping[str, Stamp]
    """Of each container when it was found, by its name."""

    def container_of(self, source: str) -> str:
        """The container's name in an address."""
        raise NotImplementedError

    def stamp(self, source: str) -> Stamp | None:
        return container_stamp(self.root / self.container_of(source))

    def check_reachable(self, missing: Sequence[str]) -> None:
        """Nothing to do: `read` stops the run where a container is missing."""

    def open_container(self, name: str) -> int:
        """A descriptor for `os.pread`, kept open in this process.

        Raises:
            UserError: the container is missing or is not what was found when the run began.
        """
        path = self.root / name
        expected = self.stamps.get(name)
        descriptor = _descriptors.get(str(path))
        if not _is_unchanged(descriptor, expected):  # opened for an earlier run, perhaps, and replaced since
            _descriptors.drop(str(path))
            descriptor = _descriptors.get(str(path))
        if not _is_unchanged(descriptor, expected):
            raise changed_error(path)
        return descriptor


@dataclass(frozen=True)
class ContainerFiles:
    """What sources of several containers in one folder share."""

    root: Path
    names: Sequence[str]

    @property
    def where(self) -> Path:
        return self.root / self.names[0] if len(self.names) == 1 else self.root

    @property
    def num_bytes(self) -> int:
        return sum(stamp.num_bytes for stamp in self.stamps().values())

    def stamps(self) -> dict[str, Stamp]:
        """Of each container, as it is now."""
        return {name: container_stamp(self.root / name) for name in self.names}


def file_stamp(path: str | os.PathLike[str]) -> Stamp:
    """Size and time of a file."""
    status = os.stat(path)
    return Stamp(status.st_size, status.st_mtime_ns)


def container_stamp(path: Path) -> Stamp:
    """Size and time of a container.

    Raises:
        UserError: it is missing.
    """
    try:
        return file_stamp(path)
    except OSError as error:
        raise storage_error(path, "cannot be read", error, remedy=GOES_ON) from None


def changed_error(path: Path) -> UserError:
    """What to raise for a container that is not the one that was listed."""
    remedy = "repeat the command when it is whole"
    return UserError(path, "changed while the run was under way", "a file at rest", remedy)


def _is_unchanged(descriptor: int, expected: Stamp | None) -> bool:
    status = os.fstat(descriptor)
    return expected is None or (status.st_size, status.st_mtime_ns) == expected


def read_part(descriptor: int, offset: int, num_bytes: int, path: Path) -> bytes:
    """`num_bytes` bytes from `offset`; fewer only where the file ends.

    Raises:
        UserError: the disk or the network fails.
    """
    parts = []
    try:
        while num_bytes > 0 and (part := os.pread(descriptor, min(num_bytes, 2**30), offset)):
            parts.append(part)
            offset, num_bytes = offset + len(part), num_bytes - len(part)
    except OSError as error:
        raise storage_error(path, "cannot be read", error, remedy=GOES_ON) from None
    return parts[0] if len(parts) == 1 else b"".join(parts)


_Opened = TypeVar("_Opened")


class OpenFiles(Generic[_Opened]):
    """Opened containers of this process, the least recently used closed first when they become many."""

    def __init__(self, open_file: Callable[[str], _Opened], close: Callable[[_Opened], Any], limit: int) -> None:
        self._open_file, self._close, self._limit = open_file, close, limit
        self._opened: OrderedDict[str, _Opened] = OrderedDict()

    def get(self, path: str) -> _Opened:
        """The opened file; opened now if need be.

        Raises:
            UserError: it cannot be opened.
        """
        if path in self._opened:
            self._opened.move_to_end(path)
            return self._opened[path]
        try:
            opened = self._open_file(path)
        except OSError as error:
            raise storage_error(path, "cannot be read", error, remedy=GOES_ON) from None
        self._opened[path] = opened
        if len(self._opened) > self._limit:
            self._close(self._opened.popitem(last=False)[1])
        return opened

    def drop(self, path: str) -> None:
        """Close a file, so that it is opened afresh."""
        if path in self._opened:
            self._close(self._opened.pop(path))


_descriptors: OpenFiles[int] = OpenFiles(
    lambda path: os.open(path, os.O_RDONLY | os.O_CLOEXEC), os.close, _MAX_OPEN_CONTAINERS
)
