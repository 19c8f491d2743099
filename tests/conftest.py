"""What the tests' processes, and those that they start, are given whatever the tests were started from."""

from __future__ import annotations

import os
import signal
from pathlib import Path

# scripts that tests write import what stands beside the tests
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
# a shell without job control starts its background jobs deaf to Ctrl-C, and children inherit that
signal.signal(signal.SIGINT, signal.default_int_handler)
