"""Files of one JSON object a line that processes append to, and that a kill may cut short."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipeline.atomic_write import write_atomically


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file, in order, without lines that a kill cut short. No file is no lines."""
    return [record for _, record in _parsed(path)]


def keep_lines(path: Path, is_kept: Callable[[dict[str, Any]], bool]) -> None:
    """Drop the lines that are not wanted, and those that a kill cut short. No file is no lines."""
    if path.is_file():
        kept = [line for line, record in _parsed(path) if is_kept(record)]
        write_atomically(path, "".join(line + "\n" for line in kept).encode())


def _parsed(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            yield line, record
