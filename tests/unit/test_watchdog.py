"""What the watchdog says of whom, and when it keeps still."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
import torch

from pipeline.config.watching import WatchdogConfig
from pipeline.engine import watchdog
from pipeline.engine.watchdog import Answer, Watchdog, diagnose
from pipeline.progress import PROGRESS, Progress, Stage


def answer(num_collectives: int, stage: str = "communication", pid: int = 7) -> Answer:
    return Answer(host="n", pid=pid, step=4, stage=stage, num_collectives=num_collectives, elapsed_s=9.0)


def test_those_that_have_begun_fewer_collectives_are_named() -> None:
    answers = {0: answer(50), 1: answer(49, "data", 8), 2: answer(50), 3: answer(48, "forward", 9)}
    message = diagnose(answers, {}, 5.0)
    assert message == (
        "step 5 took longer than 5 s: held up by rank 1 (process 8 on n, stage data, 49 collectives begun), "
        "rank 3 (process 9 on n, stage forward, 48 collectives begun), while 2 of 4 wait in collective 50"
    )


def test_those_that_do_not_answer_are_named_before_all_others() -> None:
    message = diagnose({0: answer(50), 2: answer(49)}, {1: "process 8 on n, stopped by a signal"}, 5.0)
    assert "no answer from rank 1 (process 8 on n, stopped by a signal)" in message


def test_nobody_is_blamed_where_all_have_come_equally_far() -> None:
    message = diagnose({0: answer(50, "head"), 1: answer(50, "head")}, {}, 5.0)
    assert message == "step 5 took longer than 5 s: all 2 ranks have come equally far, stage head"


def test_a_single_process_says_where_it_is() -> None:
    assert diagnose({0: answer(0, "data")}, {}, 5.0) == "step 5 took longer than 5 s: stage data, process 7 on n"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # how the thread is ended here
def test_a_long_stage_has_a_limit_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    left = threading.Event()

    def leave(code: int) -> None:
        assert code == watchdog.EXIT_HUNG
        left.set()
        raise SystemExit  # ends the watchdog's thread only

    monkeypatch.setattr(os, "_exit", leave)
    PROGRESS.begin(torch.device("cpu"), step=0)
    with Watchdog(tmp_path, WatchdogConfig(timeout_s=0.4, long_timeout_s=1000)):
        time.sleep(1.0)  # before the first step has ended
        PROGRESS.end_step(1)
        with PROGRESS.during(Stage.CHECKPOINT):
            time.sleep(1.0)
        assert not left.is_set()
        PROGRESS.enter(Stage.DATA)
        assert left.wait(60)
    assert "step 2 took longer than 0.4 s: stage data" in capfd.readouterr().err
    stacks = (tmp_path / "stacks-rank-0.txt").read_text()
    assert "test_a_long_stage_has_a_limit_of_its_own" in stacks
    assert "is MainThread" in stacks
    PROGRESS.begin(torch.device("cpu"), step=0)


def test_the_stages_of_a_step_add_up_to_its_time() -> None:
    progress = Progress()
    began = time.perf_counter()
    progress.take()
    with progress.during(Stage.FORWARD):
        time.sleep(0.02)
        with progress.during(Stage.COMMUNICATION):
            time.sleep(0.03)
    with progress.during(Stage.CHECKPOINT):
        with progress.during(Stage.COMMUNICATION):  # of the checkpoint, not of a step
            time.sleep(0.01)
        assert progress.moment().stage is Stage.CHECKPOINT
    taken = progress.take()
    elapsed_s = time.perf_counter() - began
    assert taken[Stage.FORWARD] >= 0.02
    assert 0.03 <= taken[Stage.COMMUNICATION] < elapsed_s
    assert taken[Stage.CHECKPOINT] >= 0.01
    assert sum(taken.values()) == pytest.approx(elapsed_s, abs=0.005)
    assert sum(progress.take().values()) < 0.01
