"""Run a `torchrun` command and tell the truth about it.

    python -m pipeline.supervise -- torchrun --nproc-per-node 2 launch/train.py --config configs/demo_cpu.yaml

torchrun answers every failure with exit code 1 and a traceback of its own. This wrapper first checks the configuration
in one process, so that a mistake is one line; then it runs the command, forwards SIGTERM and SIGINT, and leaves with
0 (finished), 2 (the user can mend it), 75 (asked to stop, saved, repeat the command) or 1 (crashed).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from pipeline.config.errors import EXIT_PREEMPTED, EXIT_USER_ERROR, STATUS_FILE_VARIABLE, UserError, run_command

EXIT_CRASHED = 1
EXIT_CODES = {"finished": 0, "preempted": EXIT_PREEMPTED, "user_error": EXIT_USER_ERROR}


def supervise(command: Sequence[str]) -> int:
    """Check, run and translate; gives the exit code.

    Raises:
        UserError: no command, or one without a Python script.
    """
    script = next((i for i, word in enumerate(command) if word.endswith(".py")), None)
    if script is None:
        raise UserError("pipeline.supervise", "no script in the command", "-- torchrun … launch/train.py …")
    check = subprocess.run([sys.executable, *command[script:], "--check"], check=False, stdout=subprocess.DEVNULL)
    if check.returncode:
        return check.returncode
    process: subprocess.Popen[bytes] | None = None
    is_asked_to_stop = False

    def forward(signum: int, frame: FrameType | None) -> None:
        nonlocal is_asked_to_stop
        is_asked_to_stop = True
        if process is not None:
            process.send_signal(signum)

    # before the process exists: a signal in between would leave it running alone
    previous = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with tempfile.TemporaryDirectory() as directory:
            status_file = Path(directory) / "status.json"
            try:
                process = subprocess.Popen(command, env={**os.environ, STATUS_FILE_VARIABLE: str(status_file)})
            except FileNotFoundError:
                raise UserError(command[0], "no such program", remedy="is the virtual environment active?") from None
            if is_asked_to_stop:
                process.terminate()
            process.wait()
            return _translate(status_file, is_asked_to_stop)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _translate(status_file: Path, is_asked_to_stop: bool) -> int:
    try:
        state = json.loads(status_file.read_text())["state"]
    except (OSError, ValueError, KeyError):
        # a run that is stopped before it has begun has nothing to save: repeating the command is right
        return EXIT_PREEMPTED if is_asked_to_stop else EXIT_CRASHED
    return EXIT_CODES.get(state, EXIT_CRASHED)


def main() -> None:
    """Entry point."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["--"]:
        arguments = arguments[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(__doc__ or "")
        return
    raise SystemExit(supervise(arguments))


if __name__ == "__main__":
    run_command(main)
