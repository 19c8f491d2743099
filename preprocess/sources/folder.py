"""A folder of folders: `ROOT/IDENTITY/…/photo.jpg`. Links are followed; one that leads back to a parent is a reject."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from preprocess.photo import PHOTO_SUFFIXES
from preprocess.sources.listing import LISTING_SCHEMA
from preprocess.storage import storage_error

_Entry = tuple[bytes, bytes, str]  # path relative to the root, identity, problem


def list_folder(root: Path) -> tuple[pa.Table, list[str]]:
    """Photos below `root` as a table with `LISTING_SCHEMA`, in the order of their path's bytes.

    The identity is the first folder below the root; deeper folders belong to it. Hidden files and files whose suffix is
    not a photo's are passed over and counted in the sentences returned. Dangling links stay in the list and become
    rejects when they are read.

    Raises:
        UserError: a folder cannot be listed.
    """
    passed_over: Counter[str] = Counter()
    entries = sorted(_walk(os.fsencode(root), passed_over))
    sources, identities, problems = [], [], []
    for path, identity, problem in entries:
        name, is_utf8 = _text(path)
        sources.append(name)
        identities.append(_text(identity)[0])
        problems.append(problem or ("" if is_utf8 else "bad_name"))
    notes = [f"passed over {count:,} files: {reason}" for reason, count in sorted(passed_over.items())]
    nothing = [None] * len(entries)
    columns = [sources, identities, nothing, nothing, problems]
    arrays = [pa.array(values, field.type) for values, field in zip(columns, LISTING_SCHEMA, strict=True)]
    return pa.Table.from_arrays(arrays, schema=LISTING_SCHEMA), notes


def _walk(root: bytes, passed_over: Counter[str]) -> Iterator[_Entry]:
    # Depth first with an explicit stack; each folder knows the (device, inode) of all folders above it.
    stack: list[tuple[bytes, frozenset[tuple[int, int]]]] = [(b"", frozenset())]
    while stack:
        relative, above = stack.pop()
        folder = os.path.join(root, relative) if relative else root
        try:
            status = os.stat(folder)
            here = above | {(status.st_dev, status.st_ino)}
            children = list(os.scandir(folder))
        except OSError as error:
            raise storage_error(os.fsdecode(folder), "cannot be listed", error, "a readable folder") from None
        for child in children:
            path = os.path.join(relative, child.name)
            identity = path.split(b"/", 1)[0]
            if child.name.startswith(b"."):
                passed_over["hidden"] += 1
            elif _is_folder(child):
                status = child.stat()
                if (status.st_dev, status.st_ino) in here:
                    yield path, identity, "symlink_loop"
                else:
                    stack.append((path, here))
            elif os.fsdecode(os.path.splitext(child.name)[1]).lower() not in PHOTO_SUFFIXES:
                # A link that loops onto itself is neither file nor folder: the ledger should name it.
                if child.is_symlink() and not os.path.exists(os.path.join(folder, child.name)):
                    yield path, identity, "symlink_loop" if _loops(os.path.join(folder, child.name)) else "unreadable"
                else:
                    passed_over["not a photo's suffix"] += 1
            elif not relative:
                passed_over["beside the identity folders"] += 1
            else:
                yield path, identity, ""


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that loops onto itself
        return False


def _loops(path: bytes) -> bool:
    try:
        os.stat(path)
    except OSError as error:
        return error.errno == errno.ELOOP
    return False


def _text(name: bytes) -> tuple[str, bool]:
    try:
        return name.decode(), True
    except UnicodeDecodeError:  # kept readable in the ledger; such a name cannot stand in Parquet as it is
        return name.decode(errors="backslashreplace"), False
