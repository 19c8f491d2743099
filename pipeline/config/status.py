"""What a node's supervisor and its ranks tell each other: files in a directory that a variable names."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

STATUS_VARIABLE = "FACEMILL_STATUS_DIRECTORY"
"""Names the directory in which a node's ranks say how they end: torchrun swallows exit codes."""
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
    """Wait until the supervisor, if there is one, has found the configuration to be good; else it ends this process."""
    directory = os.environ.get(STATUS_VARIABLE)
    while directory and not os.path.exists(os.path.join(directory, _CHECKED)):
        time.sleep(_LOOK_S)


def tell_checked(directory: Path) -> None:
    """Let the ranks go on that wait in `await_check`, and those that are started later."""
    (directory / _CHECKED).touch()
