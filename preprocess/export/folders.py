"""A split as `OUT/IDENTITY/KEY.jpg`."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

from pipeline.config.errors import UserError
from preprocess.export.samples import Sample, Samples
from preprocess.progress import Advance
from preprocess.storage import finish_folder, unfinished_folder

_MAX_NAME_BYTES = 255


def export_folders(samples: Samples, out: Path, advance: Advance) -> None:
    """Write each photo's JPEG as it is. Interrupted, the same call goes on; the folder appears when it is complete.

    Args:
        samples: what to write.
        out: the folder to make.
        advance: told how many photos have been written since it was last told.

    Raises:
        UserError: an identity's name cannot be a folder's, or a photo is damaged.
    """
    for identity in samples.identities:
        _check_name(identity)
    work = unfinished_folder(out, samples.origin)
    folder = None
    for sample in samples:
        if folder != work / sample.identity:
            folder = work / sample.identity
            folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{sample.key}.jpg"
        if not _is_there(path, sample):
            path.write_bytes(samples.jpeg(sample))
        advance(1)
    finish_folder(work, out)


def _is_there(path: Path, sample: Sample) -> bool:
    """Whether an earlier run has written a photo whole."""
    try:
        return os.stat(path).st_size == sample.num_bytes and zlib.crc32(path.read_bytes()) == sample.crc32
    except FileNotFoundError:
        return False


def _check_name(identity: str) -> None:
    """Names that would leave the folder, or that listing a folder of people would pass over.

    Raises:
        UserError: naming the identity.
    """
    is_bad = "/" in identity or "\0" in identity or identity.startswith(".") or not identity
    if is_bad or len(identity.encode()) > _MAX_NAME_BYTES:
        raise UserError(
            f"identity {identity[:80]!r}",
            "cannot be a folder's name",
            "no slash, no dot at its start, at most 255 bytes",
            "export --format rec instead",
        )
