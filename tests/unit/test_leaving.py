"""The console script leaves with its own exit code, whatever libraries would do at exit."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import atexit, os, sys
atexit.register(lambda: os.abort())
from preprocess.cli import main
sys.argv = ["preprocess", *sys.argv[1:]]
main()
"""


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [(["--help"], 0, "Usage"), (["verify", "nowhere"], 2, "no such directory"), (["verify"], 2, "Missing argument")],
)
def test_exit_codes(arguments: list[str], code: int, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == code
    assert said in done.stdout + done.stderr
