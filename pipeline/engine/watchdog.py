"""A rank that hangs ends the run with a message that names it, not with ranks that wait for ever.

A collective waits for every rank, so one that never comes stops all of them at once and in the same place; which one it
was is not to be seen from any other. So when a step takes longer than allowed, the first watchdog to notice raises an
alarm in the process group's key-value store. Every rank's watchdog sees it, writes the stacks of its threads and
answers with how many collectives it has begun. Those that have begun fewer than others hold them up, and those that do
not answer at all are frozen or gone.
"""

from __future__ import annotations

import faulthandler
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import torch.distributed as c10d

from pipeline import dist
from pipeline.config.watching import WatchdogConfig
from pipeline.progress import PROGRESS

EXIT_HUNG = 1
STACKS_FILE = "stacks-rank-{rank}.txt"
_POLLS = 20
"""Looks within a time limit: how much later than it an alarm may come, as a part of it."""
_MOST_POLL_S = 5.0
_LEAST_GRACE_S = 5.0
"""How long ranks are given to answer, at least."""
_REPORT_S = 2.0
"""How long the other ranks leave the one that reports to do so: the launcher kills all as soon as one has left."""


@dataclass(frozen=True)
class Answer:
    """What a rank says of itself when there is an alarm."""

    host: str
    pid: int
    step: int
    """Optimizer updates done."""
    stage: str
    """One of `pipeline.progress.Stage`."""
    num_collectives: int
    """Begun by its process."""
    elapsed_s: float
    """Since it last got on."""

    @property
    def place(self) -> str:
        """The process, for a person who looks for it."""
        return f"process {self.pid} on {self.host}"


class Watchdog:
    """Watches over one rank while the block runs. Construction is collective on all ranks.

    On an alarm the process writes its stacks to `stacks-rank-N.txt` and ends with exit code 1 from the watchdog's
    thread: the main thread cannot be reached inside a collective. Should that thread not get to run, because a library
    call holds the interpreter's lock, a timer of `faulthandler` ends the process instead, its stacks on standard error.

    Args:
        output: the run's directory.
        config: time limits.
    """

    def __init__(self, output: Path, config: WatchdogConfig) -> None:
        self._output, self._config = output, config
        self._rank, self._world_size = dist.rank(), dist.world_size()
        limit_s = min(config.timeout_s, config.long_timeout_s)
        self._poll_s = min(limit_s / _POLLS, _MOST_POLL_S)
        self._grace_s = _LEAST_GRACE_S + 2 * self._poll_s
        self._done = threading.Event()
        group = dist.all_gather_objects(uuid.uuid4().hex)[0]
        self._store = _own_store(group) if self._world_size > 1 else None
        if self._store is not None:
            # what the others call this process when it does not answer
            self._store.set(f"process/{self._rank}", json.dumps([socket.gethostname(), os.getpid()]))
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        while not self._done.wait(self._poll_s):
            moment = PROGRESS.moment()
            limit_s = self._config.long_timeout_s if moment.is_long else self._config.timeout_s
            left_s = limit_s - moment.elapsed_s
            # only fires where this loop is kept from coming around
            faulthandler.dump_traceback_later(max(left_s, 0) + 2 * self._grace_s, exit=True)
            try:
                if left_s < 0 or (self._store is not None and self._store.check(["alarm"])):
                    self._end(limit_s)
            except RuntimeError as error:  # the store went down with its host: what is left is this rank's own word
                if left_s < 0:
                    self._write_stacks()
                    self._leave(f"no progress for {limit_s:g} s, and the ranks' store does not answer ({error})")

    def _end(self, limit_s: float) -> NoReturn:
        """Answer to the alarm, gather the others' answers, report and leave."""
        if self._store is not None:
            self._store.compare_set("alarm", "", json.dumps(limit_s))
            limit_s = json.loads(self._store.get("alarm"))
        self._write_stacks()
        answers = self._exchange_answers()
        if self._rank == min(answers):
            silent = set(range(self._world_size)) - answers.keys()
            message = diagnose(answers, {rank: self._describe_silent(rank, answers) for rank in silent}, limit_s)
            self._leave(f"{message}; the stacks of all threads: {self._output / STACKS_FILE.format(rank='*')}")
        time.sleep(_REPORT_S)
        self._leave(None)

    def _exchange_answers(self) -> dict[int, Answer]:
        moment = PROGRESS.moment()
        own = Answer(
            host=socket.gethostname(),
            pid=os.getpid(),
            step=moment.step,
            stage=str(moment.stage),
            num_collectives=dist.num_collectives(),
            elapsed_s=moment.elapsed_s,
        )
        answers = {self._rank: own}
        if self._store is None:
            return answers
        self._store.set(f"answer/{self._rank}", json.dumps(asdict(own)))
        deadline = time.monotonic() + self._grace_s
        while len(answers) < self._world_size and time.monotonic() < deadline:
            for rank in set(range(self._world_size)) - answers.keys():
                if self._store.check([f"answer/{rank}"]):
                    answers[rank] = Answer(**json.loads(self._store.get(f"answer/{rank}")))
            time.sleep(0.05)
        return answers

    def _describe_silent(self, rank: int, answers: Mapping[int, Answer]) -> str:
        assert self._store is not None
        if not self._store.check([f"process/{rank}"]):
            return "it never started its watchdog"
        host, pid = json.loads(self._store.get(f"process/{rank}"))
        state = _process_state(pid) if host == socket.gethostname() else ""
        return f"process {pid} on {host}" + (f", {state}" if state else "")

    def _write_stacks(self) -> None:
        moment = PROGRESS.moment()
        with open(self._output / STACKS_FILE.format(rank=self._rank), "w") as file:
            file.write(
                f"rank {self._rank}, process {os.getpid()} on {socket.gethostname()}, {time.strftime('%F %T %Z')}\n"
                f"after step {moment.step}, stage {moment.stage} for {moment.elapsed_s:.1f} s\n"
            )
            for thread in threading.enumerate():
                file.write(f"thread {thread.ident or 0:#018x} is {thread.name}\n")
            file.write("\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)

    def _leave(self, message: str | None) -> NoReturn:
        if message is not None:
            sys.stderr.write(f"error: {message}\n")
            sys.stderr.flush()
        os._exit(EXIT_HUNG)


def diagnose(answers: Mapping[int, Answer], silent: Mapping[int, str], limit_s: float) -> str:
    """Name the ranks that hold up the others.

    Args:
        answers: by rank.
        silent: what is known of the ranks that did not answer.
        limit_s: what was exceeded.
    """
    first = answers[min(answers)]
    if len(answers) == 1 and not silent:
        return f"step {first.step + 1} took longer than {limit_s:g} s: stage {first.stage}, {first.place}"
    opening = f"step {first.step + 1} took longer than {limit_s:g} s"
    if silent:
        named = ", ".join(f"rank {rank} ({known})" for rank, known in sorted(silent.items()))
        return f"{opening}: no answer from {named}; {len(answers)} of {len(answers) + len(silent)} ranks answered"
    furthest = max(answer.num_collectives for answer in answers.values())
    behind = {rank: answer for rank, answer in answers.items() if answer.num_collectives < furthest}
    if not behind:
        return f"{opening}: all {len(answers)} ranks have come equally far, stage {first.stage}"
    named = ", ".join(
        f"rank {rank} ({answer.place}, stage {answer.stage}, {answer.num_collectives} collectives begun)"
        for rank, answer in sorted(behind.items())
    )
    waiting = len(answers) - len(behind)
    return f"{opening}: held up by {named}, while {waiting} of {len(answers)} wait in collective {furthest}"


def _own_store(group: str) -> c10d.Store:
    """A connection of our own to the group's store: one that is shared would be blocked by whoever waits in it.

    The store may outlive the group, whose successor must not find its alarm: `group` begins the keys.
    """
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = c10d.TCPStore(host, port, is_master=False, wait_for_workers=False)
    return c10d.PrefixStore(f"watchdog/{group}", store)


def _process_state(pid: int) -> str:
    """What the kernel says of a process of this machine."""
    try:
        state: Any = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return "gone"
    return {"T": "stopped by a signal", "D": "waiting for a device", "Z": "ended"}.get(state, "")
