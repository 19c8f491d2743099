"""Files of one JSON object a line that processes append to, and that a kill may cut short."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.atomic_write import write_atomically


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file, in order; without those that a kill cut short. No file is no lines."""
    if not path.is_file():
        return []
    found = []
    for line in path.read_text().splitlines():
        with suppress(ValueError):
            found.append(json.loads(line))
    return found


def keep_lines(path: Path, is_kept: Callable[[dict[str, Any]], bool]) -> None:
    """Drop the lines that are not wanted, and those that a kill cut short. No file is no lines."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            record = json.loads(line)
        except ValueError:  # the line that a kill cut short
            continue
        if is_kept(record):
            kept.append(line)
    write_atomically(path, "".join(line + "\n" for line in kept).encode())
