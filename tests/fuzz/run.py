"""Feed inputs to a reader under limits of time and memory."""

from __future__ import annotations

import random
import resource
import signal
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from pipeline.config.errors import UserError
from pipeline.data.pair_bin import read_pair_bin
from preprocess.photo import Reject
from preprocess.sources import read_source
from preprocess.sources.store import Place
from tests.fuzz import inputs

LIMIT_S = 10
"""Of processor time for one input, so that a busy machine fails none; a thousand times what the slowest takes."""
LIMIT_BYTES = 256 * 2**20
"""Of address space, above what the process had at its start."""


@dataclass
class Outcome:
    """What became of the inputs of one reader."""

    num_read: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    """By the exception's name."""
    failures: list[str] = field(default_factory=list)


def fuzz(reader: str, numbers: Iterator[int] | range, seed: int, folder: Path) -> Outcome:
    """Feed the inputs with these numbers to the reader called `reader`, in this process."""
    outcome = Outcome()
    read = READERS[reader]
    for number in numbers:
        rng = random.Random(f"{reader}-{seed}-{number}")
        try:
            with _time_limit():
                read(rng, folder)
            outcome.num_read += 1
        except (UserError, Reject) as error:
            outcome.refused[type(error).__name__] += 1
            if "\n" in str(error):
                outcome.failures.append(f"{reader} {number}: a message of several lines: {error!r}")
        except BaseException:  # what a reader must not let through, MemoryError and the limit of time included
            outcome.failures.append(f"{reader} {number}:\n{traceback.format_exc()}")
    return outcome


@contextmanager
def memory_limit() -> Iterator[None]:
    """Let this process have `LIMIT_BYTES` of address space more than it has now."""
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + LIMIT_BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


class TooSlowError(BaseException):
    """An input took longer than `LIMIT_S`; no reader catches this."""


@contextmanager
def _time_limit() -> Iterator[None]:
    def stop(_number: int, _frame: FrameType | None) -> None:
        raise TooSlowError

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _read_all(path: Path) -> None:
    """List a source and read each of its photos."""
    photos, listing, _ = read_source(path)
    for row in listing.to_pylist():
        if not row["problem"]:
            photos.read(Place(row["source"], row.get("offset"), row.get("num_bytes")))


def _read_rec(rng: random.Random, folder: Path) -> None:
    data, idx = inputs.rec_pair(rng)
    (folder / "train.rec").write_bytes(data)
    if idx is None:
        (folder / "train.idx").unlink(missing_ok=True)
    else:
        (folder / "train.idx").write_bytes(idx)
    _read_all(folder / "train.rec")


def _read_tar(rng: random.Random, folder: Path) -> None:
    (folder / "x.tar").write_bytes(inputs.tar(rng))
    _read_all(folder / "x.tar")


def _read_pair_bin(rng: random.Random, folder: Path) -> None:
    (folder / "x.bin").write_bytes(inputs.pair_bin(rng))
    read_pair_bin(folder / "x.bin")


READERS: dict[str, Callable[[random.Random, Path], None]] = {
    "recordio": _read_rec,
    "tar": _read_tar,
    "bin": _read_pair_bin,
}
