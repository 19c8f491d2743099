"""Files that appear whole under their name, and durable, or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import IO


def write_atomically(path: Path, content: bytes | Callable[[IO[bytes]], None], aside: Path | None = None) -> None:
    """Write a file aside, put it on the disk, then give it its name. Several processes may write the same one at once.

    Args:
        path: the final name; its folder is made when missing, and an earlier file of the name is replaced.
        content: the bytes, or a function that writes them to the open temporary file.
        aside: the folder for the temporary file, on the same file system, made when missing; None for that of `path`,
            where the file is hidden until it is complete.

    Raises:
        OSError: the system refuses. Then, as with whatever `content` raises, nothing of the file is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = path.parent if aside is None else aside
    folder.mkdir(parents=True, exist_ok=True)
    # writers on several machines may have equal process numbers
    temporary = folder / f".{path.name}.{uuid.uuid4().hex}.tmp"
    try:
        with open(temporary, "wb") as file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                content(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Put a folder's entries on the disk: a rename is not durable before."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
