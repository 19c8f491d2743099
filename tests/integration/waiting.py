"""Waiting for what a process under test brings about."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable

_LOOK_S = 0.005


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str], timeout_s: float = 60) -> None:
    """Look until the condition holds, while the process runs and `timeout_s` lasts."""
    for _ in range(int(timeout_s / _LOOK_S)):
        if condition():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(_LOOK_S)
    raise AssertionError("it did not come to pass")
