"""The small files of a remote data set, fetched once a node: commit records, manifests, and the index built from them.

They stand in a folder of their own for each URL and content of `dataset.json`, so a new version of a data set never
meets an old one's files. A file appears whole under its name or not at all; processes that want the same one at once
both fetch it, and the later rename puts the same bytes there again.
"""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.atomic_write import write_atomically
from pipeline.config.errors import TemporaryError, UserError
from pipeline.config.location import RemotePath, user_cache
from pipeline.data.retry import FetchError, RetryPolicy, TransientError, retry

# Requests at a time: a manifest is small, and most of its time is the way there and back.
_NUM_THREADS = 16


@dataclass(frozen=True)
class Mirror:
    """Local copies of a remote data set's small files."""

    root: RemotePath
    folder: Path
    """Where they stand, under their names relative to `root`."""

    @classmethod
    def of(cls, root: RemotePath, description: bytes, cache: Path | None) -> Mirror:
        """Name the folder, and make it.

        Args:
            root: the data set.
            description: the content of its `dataset.json`.
            cache: a folder for copies; None: `facemill` in the user's cache folder (`XDG_CACHE_HOME`, or `~/.cache`).

        Raises:
            UserError: the folder cannot be made.
        """
        base = cache if cache is not None else user_cache()
        name = hashlib.sha256(str(root).encode() + b"\n" + description).hexdigest()[:32]
        folder = base / "metadata" / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            remedy = "set data.cache.path=DIR, or XDG_CACHE_HOME"
            raise UserError(folder, f"cannot be made ({error.strerror})", "a folder to write to", remedy) from None
        return cls(root, folder)

    @staticmethod
    def read(place: RemotePath) -> bytes:
        """Read a small remote file.

        Raises:
            UserError: there is none, or the store does not give it.
        """
        content = Mirror.read_if_there(place)
        if content is None:
            raise UserError(place, "no such file", "a finished data set", "copy the whole data set there")
        return content

    @staticmethod
    def read_if_there(place: RemotePath) -> bytes | None:
        """Read a small remote file; None where the store says that there is none.

        Raises:
            UserError: the store does not give it.
        """
        from pipeline.data.remote import fetch

        policy = RetryPolicy()
        try:
            return retry(str(place), policy, lambda: fetch(place, policy), lambda: None)
        except FileNotFoundError:
            return None
        except FetchError as error:
            # what was tried again in vain may be an outage as well as a wrong address
            kind = TemporaryError if isinstance(error.__cause__, TransientError) else UserError
            raise kind(place, str(error).removeprefix(f"{place}: "), remedy="is the address right?") from None

    def file(self, place: RemotePath, sha256: str | None = None) -> Path:
        """Give the local copy of a file below `root`, fetching it first where it is missing.

        Raises:
            UserError: it cannot be fetched or written, or its hash is another than `sha256`.
        """
        path = self.folder / str(place).removeprefix(f"{self.root}/")
        if path.is_file():
            return path
        content = self.read(place)
        if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
            content = self.read(place)  # once more: bits may flip on the way
            if (found := hashlib.sha256(content).hexdigest()) != sha256:
                raise UserError(
                    place,
                    f"sha256 {found[:12]}…",
                    f"{sha256[:12]}…, as its commit record says",
                    "copy the data set there again",
                )
        try:
            write_atomically(path, content)
        except OSError as error:
            remedy = "make room, or set data.cache.path=DIR"
            raise UserError(path, f"cannot be written ({error.strerror})", remedy=remedy) from None
        return path

    def files(self, places: Sequence[tuple[RemotePath, str | None]]) -> list[Path]:
        """As `file` of each place and hash, some at a time."""
        with ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="mirror") as pool:
            return list(pool.map(lambda wanted: self.file(*wanted), places))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes of the node out; the lock ends with its process."""
        with open(self.folder / ".lock", "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
