"""The one exception that means "the user can mend this", and its way to the terminal."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from pipeline.config.status import await_check, report_status

EXIT_FAILED = 1  # crashed, killed, or stopped by what may pass; trying again may help
EXIT_USER_ERROR = 2
EXIT_BAD_DATA = 3
EXIT_PREEMPTED = 75  # EX_TEMPFAIL: asked to stop, saved; try again


class UserError(Exception):
    """A mistake the user can mend: shown as one line without a traceback, exit code 2.

    Args:
        where: the path or the dotted configuration key the message is about.
        found: what is wrong there.
        expected: what would have been right; may be empty where `found` says it all.
        remedy: what to do next, preferably a command or an option; may be empty.
    """

    exit_code = EXIT_USER_ERROR
    state = "bad_configuration"
    """What the supervisor is told."""

    def __init__(self, where: object, found: str, expected: str = "", remedy: str = "") -> None:
        self.where, self.found, self.expected, self.remedy = str(where), found, expected, remedy
        parts = [f"{where}: {found}"]
        if expected:
            parts.append(f"expected {expected}")
        if remedy:
            parts.append(remedy)
        super().__init__("; ".join(parts))

    def __reduce__(self) -> tuple[type[UserError], tuple[str, str, str, str]]:
        """Survive the trip between processes: the default would call `__init__` with one argument."""
        return (type(self), (self.where, self.found, self.expected, self.remedy))


class DataError(UserError):
    """Data that were fit for use once and are not: damaged, incomplete, replaced. Exit code 3.

    Another configuration does not help, and neither does trying again.
    """

    exit_code = EXIT_BAD_DATA
    state = "bad_data"


class TemporaryError(UserError):
    """What nobody's configuration is to blame for and what may pass: storage that is full or fails, a process that was
    killed, a store that does not answer. Exit code 1, as of a crash: the same command goes on where it stopped, and a
    cluster tries again as often as its job may.
    """

    exit_code = EXIT_FAILED
    state = "failed"


class InUseError(TemporaryError):
    """Another process holds what only one may write to."""


def exit_with_user_error(error: UserError) -> NoReturn:
    """Print `error` as one line on standard error and leave with its exit code."""
    rank = os.environ.get("RANK", "0")
    sys.stderr.write(f"error: {error}\n" if rank == "0" else f"error on rank {rank}: {error}\n")
    report_status(error.state, error=str(error))
    raise SystemExit(error.exit_code) from None


def run_command(main: Callable[[], None], prepare: Callable[[], None] | None = None) -> None:
    """Run a command line's `main`, turning `UserError` into one line and its exit code, Ctrl-C into exit code 130.

    Under a supervisor, `main` begins when the supervisor has checked the configuration; `prepare`, which is to take
    time and not to fail, is done meanwhile.

    A rank of a distributed run that fails leaves at once, without exit handlers: a handler that drains collectives
    would wait for ranks that wait for this one.
    """
    report_status("running")  # what an earlier process of this rank said, before a restart, does not count any more

    def prepared() -> None:
        if prepare is not None:
            prepare()
        await_check()
        main()

    try:
        _run(prepared)
    except BaseException as error:
        if "RANK" not in os.environ or (isinstance(error, SystemExit) and not error.code):
            raise
        if not isinstance(error, SystemExit):
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1)


def _run(main: Callable[[], None]) -> None:
    try:
        main()
    except UserError as error:
        exit_with_user_error(error)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command goes on where it stopped\n")
        raise SystemExit(130) from None
