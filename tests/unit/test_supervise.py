"""The supervisor's exit code is that of the processes started last, whatever the launcher says."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipeline.config.status import STATUS_VARIABLE, await_check
from pipeline.supervise import _is_one_node, _torchrun_settings, supervise

# a launcher like torchrun: starts its script again when it fails, and has an exit code of its own
LAUNCHER = """
import os, subprocess, sys
for attempt in range({restarts} + 1):
    environment = dict(os.environ, RANK="0", LOCAL_RANK="0", ATTEMPT=str(attempt))
    if subprocess.run([sys.executable, *sys.argv[1:]], env=environment).returncode == 0:
        sys.exit(0)
sys.exit(1)
"""
SCRIPT = """
import os, signal, sys, time
from pipeline.config.errors import DataError, InUseError, UserError, run_command
from pipeline.config.status import report_status
def crash(): os.kill(os.getpid(), signal.SIGKILL)
def finish(): report_status("finished")
def finish_but_fail(): report_status("finished"); crash()
def preempted(): report_status("preempted")
def configuration(): raise UserError("lr", "-1", "a positive number")
def data(): raise DataError("shard", "damaged")
def in_use(): raise InUseError("run", "another run writes here")
def nothing(): pass
def main():
    if sys.argv[-1] != "--check":
        globals()[sys.argv[1 + int(os.environ["ATTEMPT"])]]()
run_command(main)
"""


@pytest.mark.parametrize(
    ("attempts", "code"),
    [
        (["finish"], 0),
        (["nothing"], 0),
        (["configuration"], 2),
        (["data"], 3),
        (["crash"], 1),
        (["in_use"], 1),
        (["preempted"], 75),
        (["crash", "finish"], 0),
        (["finish_but_fail"], 0),
        # what an earlier attempt said does not count any more
        (["configuration", "crash"], 1),
        (["data", "finish"], 0),
        (["crash", "configuration"], 2),
    ],
)
def test_exit_codes(tmp_path: Path, attempts: list[str], code: int) -> None:
    (tmp_path / "launcher").write_text(LAUNCHER.format(restarts=len(attempts) - 1))
    (tmp_path / "train.py").write_text(SCRIPT)
    assert supervise([sys.executable, str(tmp_path / "launcher"), str(tmp_path / "train.py"), *attempts]) == code


def test_every_start_has_a_store_of_its_own(tmp_path: Path) -> None:
    """Else ranks that torchrun starts again call on those before them."""
    (tmp_path / "launcher").write_text(
        "import os, sys; sys.exit(os.environ.get('TORCH_DISABLE_SHARE_RDZV_TCP_STORE') != '1')"
    )
    (tmp_path / "train.py").write_text("")
    assert supervise([sys.executable, str(tmp_path / "launcher"), str(tmp_path / "train.py")]) == 0


def test_ranks_that_the_launcher_left_behind_are_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that saves and leaves when asked to, and one that does not."""
    (tmp_path / "launcher").write_text(
        "import os, subprocess, sys\n"
        "for rank in '01':\n"
        "    subprocess.Popen([sys.executable, *sys.argv[1:], rank], env=dict(os.environ, RANK=rank),\n"
        "        start_new_session=True)\n"
        "while not (os.path.exists('ready-0') and os.path.exists('ready-1')): pass\n"
        "os._exit(1)"
    )
    (tmp_path / "train.py").write_text(
        "import signal, sys, time\n"
        "from pipeline.config.status import report_status\n"
        "def save(*_): time.sleep(0.5); report_status('preempted'); sys.exit()\n"
        "if sys.argv[-1] != '--check':\n"
        "    signal.signal(signal.SIGTERM, save if sys.argv[-1] == '0' else signal.SIG_DFL)\n"
        "    open(f'ready-{sys.argv[-1]}', 'w')\n"
        "    time.sleep(1000)"
    )
    monkeypatch.chdir(tmp_path)
    before = psutil.Process().children(recursive=True)
    assert supervise([sys.executable, str(tmp_path / "launcher"), str(tmp_path / "train.py")]) == 75
    assert psutil.Process().children(recursive=True) == before


@pytest.mark.parametrize(("check", "code"), [("sys.exit(2)", 2), ("sys.exit(3)", 3), ("1 / 0", 1), ("os.abort()", 1)])
def test_ranks_wait_for_the_check_and_do_not_train_when_it_fails(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], check: str, code: int
) -> None:
    (tmp_path / "launcher").write_text(LAUNCHER.format(restarts=0))
    (tmp_path / "train.py").write_text(
        "import os, sys\n"
        "from pipeline.config.errors import run_command\n"
        f"started = {str(tmp_path / 'started')!r}\n"
        "def prepare():\n"
        "    if sys.argv[-1] == '--check':\n"
        "        while not os.path.exists(started): pass\n"  # the rank is there and waits
        f"        {check}\n"
        "    open(started, 'w')\n"
        f"run_command(lambda: open({str(tmp_path / 'trained')!r}, 'w').close(), prepare)"
    )
    before = psutil.Process().children(recursive=True)
    assert supervise([sys.executable, str(tmp_path / "launcher"), str(tmp_path / "train.py")]) == code
    assert (tmp_path / "started").exists()
    assert not (tmp_path / "trained").exists()
    assert psutil.Process().children(recursive=True) == before
    if "exit" in check:  # the check says what is wrong; launcher and ranks add nothing
        assert capfd.readouterr().err == ""


@pytest.mark.parametrize("is_fine", [True, False])
def test_a_node_is_checked_before_it_meets_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_fine: bool
) -> None:
    """Others would wait for its ranks, and for dead ones when the check has failed."""
    monkeypatch.setenv("PET_NNODES", "1:2")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "launcher").write_text("import os; open('launched', 'w'); assert os.path.exists('checked')")
    (tmp_path / "train.py").write_text(
        f"import sys, time; time.sleep(0.5); open('checked', 'w'); sys.exit({0 if is_fine else 3})"
    )
    assert supervise([sys.executable, "launcher", "train.py"]) == (0 if is_fine else 3)
    assert (tmp_path / "launched").exists() == is_fine


@pytest.mark.parametrize(
    ("words", "variables", "is_one_node", "has_one_thread"),
    [
        (["torchrun"], {}, True, False),
        (["torchrun", "--standalone", "--nproc-per-node", "2"], {}, True, True),
        (["torchrun", "--nproc_per_node=8", "--nnodes=2"], {}, False, True),
        (["torchrun", "--nnodes", "1:4", "--nproc-per-node", "gpu"], {}, False, False),
        (["torchrun", "--nnodes=1:1", "--nproc-per-node=1"], {}, True, False),
        (["torchrun"], {"PET_NNODES": "2", "PET_NPROC_PER_NODE": "8"}, False, True),
        (["torchrun", "--nnodes", "1"], {"PET_NNODES": "2"}, True, False),
    ],
)
def test_what_torchrun_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    variables: dict[str, str],
    is_one_node: bool,
    has_one_thread: bool,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert _is_one_node(words) == is_one_node
    assert ("OMP_NUM_THREADS" in _torchrun_settings(words)) == has_one_thread


def test_a_rank_that_outlives_its_supervisor_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / "supervisor").write_text(str(dead.pid))
    monkeypatch.setenv(STATUS_VARIABLE, str(tmp_path))
    with pytest.raises(SystemExit) as raised:
        await_check()
    assert raised.value.code == 1
    monkeypatch.setenv(STATUS_VARIABLE, str(tmp_path / "removed"))
    with pytest.raises(SystemExit):
        await_check()


def test_a_killed_supervisor_takes_launcher_and_ranks_along(tmp_path: Path) -> None:
    """Else ranks wait for its word for ever, or train on while nobody reads their exit code."""
    pids = tmp_path / "pids"
    (tmp_path / "launcher").write_text(
        f"import os\nopen({str(pids)!r}, 'a').write(f'{{os.getpid()}}\\n')\n" + LAUNCHER.format(restarts=0)
    )
    (tmp_path / "train.py").write_text(
        "import os, sys, time\n"
        "from pipeline.process_tree import leave_with_launcher\n"
        "leave_with_launcher()\n"
        f"'RANK' in os.environ and open({str(pids)!r}, 'a').write(f'{{os.getpid()}}\\n')\n"
        "'RANK' in os.environ and time.sleep(1000)\n"
    )
    words = [sys.executable, str(tmp_path / "launcher"), str(tmp_path / "train.py")]
    process = subprocess.Popen([sys.executable, "-m", "pipeline.supervise", "--", *words])
    while process.poll() is None and not (pids.exists() and pids.read_text().count("\n") == 2):
        time.sleep(0.02)
    left = [psutil.Process(int(pid)) for pid in pids.read_text().split()]
    process.kill()
    process.wait()
    gone, alive = psutil.wait_procs(left, timeout=30)
    for stubborn in alive:
        stubborn.kill()
    assert len(gone) == 2
    assert not alive


@pytest.mark.parametrize("is_stubborn", [False, True])
def test_asked_to_stop_during_the_check(tmp_path: Path, is_stubborn: bool) -> None:
    ready = tmp_path / "ready"
    (tmp_path / "train.py").write_text(f"import time\nopen({str(ready)!r}, 'w')\ntime.sleep(1000)")
    (tmp_path / "launcher").write_text(
        "import signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"open({str(tmp_path / 'launched')!r}, 'w')\n"
        "time.sleep(1000)"
    )
    launcher = [sys.executable, str(tmp_path / "launcher")]
    words = launcher if is_stubborn else [sys.executable, "-m", "torch.distributed.run"]
    process = subprocess.Popen([sys.executable, "-m", "pipeline.supervise", "--", *words, f"{tmp_path}/train.py"])
    while process.poll() is None and not (ready.exists() and (not is_stubborn or (tmp_path / "launched").exists())):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
