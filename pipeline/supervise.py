"""Run a `torchrun` command and tell the truth about it.

    python -m pipeline.supervise -- torchrun --nproc-per-node 2 launch/train.py --config configs/demo_cpu.yaml

torchrun answers every failure with exit code 1 and a traceback of its own. This wrapper checks the configuration in one
process, so that a mistake is one line. On a single node launcher and ranks load their modules meanwhile, and go on when
all is well; where nodes meet, a node is checked before it joins the others. It forwards SIGTERM and SIGINT, and leaves
with

    0   finished
    2   bad configuration: mend it, trying again does not help
    3   bad data: mend them, trying again does not help
    75  asked to stop: the same command goes on from the newest checkpoint
    1   crashed, or stopped by what may pass, such as storage that fails or another run in the same directory

Ranks that torchrun leaves behind are ended, too, and all of them when this process is killed. The exit code says how
the ranks of its node ended that were started last, however often torchrun restarted them. The command may be elastic,
see `pipeline.rendezvous`.
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
from types import FrameType, TracebackType
from typing import Any

from pipeline.config.errors import (
    EXIT_BAD_DATA,
    EXIT_FAILED,
    EXIT_PREEMPTED,
    EXIT_USER_ERROR,
    DataError,
    UserError,
    run_command,
)
from pipeline.config.status import STATUS_VARIABLE, tell_checked, tell_supervisor
from pipeline.process_tree import leave_with_parent, no_process_left

_SAVING_S = 600.0  # ranks that torchrun left behind may still be saving
_LEAVING_S = 5.0  # those that have only loaded modules have nothing to save
# Where torchrun's own store serves the ranks, too, those that it starts again may find the addresses of dead ones,
# and an agent that joins later waits for an address in vain.
_TORCHRUN_SETTINGS = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
MISTAKES = {UserError.state: EXIT_USER_ERROR, DataError.state: EXIT_BAD_DATA}


def supervise(command: Sequence[str]) -> int:
    """Check, run and translate; gives the exit code.

    Raises:
        UserError: no command, or one without a Python script.
    """
    script = next((i for i, word in enumerate(command) if word.endswith(".py")), None)
    if script is None:
        raise UserError("pipeline.supervise", "no script in the command", "-- torchrun … launch/train.py …")
    with _Signals() as signals, tempfile.TemporaryDirectory() as directory:
        tell_supervisor(Path(directory))
        environment = {**_torchrun_settings(command[:script]), **os.environ, STATUS_VARIABLE: directory}
        with no_process_left(_SAVING_S) as end_all:
            launcher = signals.start(command, env=environment) if _is_one_node(command[:script]) else None
            check = signals.start([sys.executable, *command[script:], "--check"], stdout=subprocess.DEVNULL)
            mistake = check.wait()
            if mistake or (launcher is None and signals.is_asked_to_stop):
                if launcher is not None:
                    launcher.kill()  # asked to leave, it would say much about that
                    launcher.wait()
                end_all(_LEAVING_S)
                if signals.is_asked_to_stop:
                    return EXIT_PREEMPTED
                return mistake if mistake in MISTAKES.values() else EXIT_FAILED
            tell_checked(Path(directory))
            launcher = launcher or signals.start(command, env=environment)
            code = launcher.wait()
        return _translate(Path(directory), code, signals.is_asked_to_stop)


def _is_one_node(launcher: Sequence[str]) -> bool:
    """Whether torchrun meets no other nodes; these would wait for a node that is being checked, or for a dead one."""
    return _torchrun_option(launcher, "nnodes") in ("1", "1:1")


def _torchrun_settings(launcher: Sequence[str]) -> dict[str, str]:
    num_processes = _torchrun_option(launcher, "nproc-per-node")
    if num_processes.isdigit() and int(num_processes) > 1:  # torchrun's own value, which it announces in four lines
        return {**_TORCHRUN_SETTINGS, "OMP_NUM_THREADS": "1"}
    return _TORCHRUN_SETTINGS


def _torchrun_option(launcher: Sequence[str], name: str) -> str:
    """The value of an option as torchrun finds it, which is 1 by default: in its command, or else in a variable."""
    spellings = ("--" + name, "--" + name.replace("-", "_"))
    for position, word in enumerate(launcher):
        option, is_joined, value = word.partition("=")
        if option in spellings:
            return value if is_joined else "".join(launcher[position + 1 : position + 2])
    return os.environ.get("PET_" + name.replace("-", "_").upper(), "1")


class _Signals:
    """Forwards SIGTERM and SIGINT to the processes that it starts."""

    def __init__(self) -> None:
        self.is_asked_to_stop = False
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> _Signals:
        self._previous = {number: signal.signal(number, self._forward) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def start(self, command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        """Start a process, which leaves when this one is killed.

        Raises:
            UserError: there is no such program.
        """
        parent = os.getpid()
        try:
            process = subprocess.Popen(command, preexec_fn=lambda: leave_with_parent(parent), **options)
        except FileNotFoundError:
            raise UserError(command[0], "no such program", remedy="is the virtual environment active?") from None
        self._processes.append(process)
        if self.is_asked_to_stop:  # while it was started: nobody has told it
            process.terminate()
        return process

    def _forward(self, signum: int, frame: FrameType | None) -> None:
        self.is_asked_to_stop = True
        for process in self._processes:
            process.send_signal(signum)


def _translate(directory: Path, code: int, is_asked_to_stop: bool) -> int:
    """From what the ranks said last, and the launcher's exit code, to ours."""
    states = {path.name: json.loads(path.read_text())["state"] for path in sorted(directory.glob("rank-*.json"))}
    for state, answer in MISTAKES.items():
        if state in states.values():
            return answer
    match states.get("rank-0.json"):  # the first rank of a node speaks for all of it
        case "finished":
            return 0
        case "preempted":
            return EXIT_PREEMPTED
    if code == 0:  # a command that has nothing to save, such as --preflight
        return 0
    if is_asked_to_stop:
        # stopped between two starts, or before it had begun: repeating the command is right
        sys.stderr.write("stopped without a new checkpoint; the same command goes on from the newest one, if any\n")
        return EXIT_PREEMPTED
    return EXIT_FAILED


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
