"""Files that appear whole or not at all, the folder where they are made, and what to say where storage refuses.

Everything unfinished lives in `OUT/.work`: temporary files and the slices of shards in progress. What bears a final
name is complete, checked and on the disk. The folder is removed when the data set is finished.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.atomic_write import sync_folder, write_atomically
from pipeline.config.errors import TemporaryError, UserError

WORK_FOLDER = ".work"
GOES_ON = "mend it and repeat the same command, it goes on where it stopped"
"""What to do about storage that refuses."""

_OF_A_PLACE = frozenset(
    {
        *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ENAMETOOLONG, errno.ELOOP),
        *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EINVAL, errno.ENXIO, errno.ENODEV, errno.EXDEV, errno.ENOTSUP),
    }
)
"""What stays until someone mends a path or a right. All else (full, stale, timed out, broken) may pass."""


def storage_error(where: object, what: str, error: OSError, expected: str = "", remedy: str = "") -> UserError:
    """What to raise where the system refuses: a `TemporaryError` where it is the storage's fault, not the path's.

    Args:
        where: the path.
        what: could not be done, as `cannot be read`.
        error: what the system said.
        expected, remedy: see `UserError`.
    """
    # Arrow raises it without a number for files that are not what they should be
    kind = UserError if error.errno is None or error.errno in _OF_A_PLACE else TemporaryError
    return kind(where, f"{what} ({error.strerror or error})", expected, remedy)


def work_folder(out: Path) -> Path:
    """Where unfinished files of `out` live; on the same file system, so that a rename is atomic."""
    return out / WORK_FOLDER


@contextmanager
def one_line_errors(out: Path) -> Iterator[None]:
    """Turn what the file system refuses (permission, space, names too long) into one line.

    Raises:
        UserError: for each `OSError`, naming its file, or `out` where it names none; see `storage_error`.
    """
    try:
        yield
    except BrokenPipeError:  # whoever read our output has left
        raise
    except OSError as error:
        where = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes | os.PathLike) else str(out)
        raise storage_error(where, "cannot be used", error, remedy="mend it and repeat the same command") from None


def write_parquet(table: pa.Table, path: Path, work: Path) -> None:
    """Write Parquet with fixed settings, so that equal tables give equal bytes."""

    def write(file: IO[bytes]) -> None:
        pq.write_table(
            table, file, compression="zstd", compression_level=3, row_group_size=65536, version="2.6", store_schema=True
        )

    write_atomically(path, write, work)


def unfinished_folder(out: Path, what: str) -> Path:
    """Where a folder is made that is to appear as `out` when it is complete: beside it, hidden.

    `what` says what it is made of, so that nothing of another origin is taken for its beginning.
    """
    return out.absolute().parent / f".{out.name}.{what}.unfinished"


def finish_folder(work: Path, out: Path) -> None:
    """Put all files of `work` on the disk, then give the folder its name."""
    os.sync()  # one for all: a flush for each of millions of files would take longer than writing them
    os.rename(work, out)
    sync_folder(out.absolute().parent)
