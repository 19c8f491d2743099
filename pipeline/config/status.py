"""What a node's supervisor and its ranks tell each other: files in a directory that a variable names."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

STATUS_VARIABLE = "FACEMILL_STATUS_DIRECTORY"
"""Names the directory in which a node's ranks say how they end: torchrun swallows exit codes."""
_SUPERVISOR = "supervisor"
_CHECKED = "checked"
_LOOK_S = 0.02


def report_status(state: str, **details: object) -> None:
    """Tell the supervisor, if there is one, how this rank fares; what it said before is replaced.

    Args:
        state: `running`, `finished`, `preempted`, or a `UserError.state`.
        details: for people.
    """
    if directory := os.environ.get(STATUS_VARIABLE):
        place = os.path.join(directory, f"rank-{os.environ.get('LOCAL_RANK', '0')}.json")
        with open(place + ".tmp", "w") as file:
            json.dump({"state": state, **details}, file)
        os.replace(place + ".tmp", place)  # a kill in between leaves no half of it


def await_check() -> None:
    """Wait until the supervisor, if there is one, has found the configuration to be good; else it ends this process.

    A process that outlives its supervisor leaves, with code 1.
    """
    if STATUS_VARIABLE not in os.environ:
        return
    directory = Path(os.environ[STATUS_VARIABLE])
    try:
        supervisor = int((directory / _SUPERVISOR).read_text())
        while not (directory / _CHECKED).exists():
            os.kill(supervisor, 0)
            time.sleep(_LOOK_S)
    except (FileNotFoundError, ProcessLookupError):
        raise SystemExit(1) from None


def tell_supervisor(directory: Path) -> None:
    """Let the ranks that will wait in `await_check` know for whom."""
    (directory / _SUPERVISOR).write_text(str(os.getpid()))


def tell_checked(directory: Path) -> None:
    """Let the ranks go on that wait in `await_check`, and those that are started later."""
    (directory / _CHECKED).touch()
