"""How fast two processes of this machine exchange tensors over gloo.

    python -m pipeline.engine.measure_link 0 PORT & python -m pipeline.engine.measure_link 1 PORT

It is what `pipeline.engine.estimate` starts. Between machines the network decides instead.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time

import torch
import torch.distributed as c10d

from pipeline import dist
from pipeline.config.errors import UserError

_NUM_BYTES = 32 << 20
_NUM_EXCHANGES = 5


def seconds_per_byte() -> float:
    """Time to reduce a tensor over two processes, divided by its size; a rank of the two sends as many bytes.

    Raises:
        UserError: the processes did not find each other.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "pipeline.engine.measure_link"]
    processes = [
        subprocess.Popen([*command, str(rank), str(port)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    try:
        answers = [process.communicate(timeout=120)[0] for process in processes]
        return max(float(answer) for answer in answers)
    except (subprocess.TimeoutExpired, ValueError) as error:
        raise UserError("--estimate", "two processes of this machine could not exchange tensors") from error
    finally:
        for process in processes:
            process.kill()
            process.wait()


def main() -> None:
    """Entry point of each of the two processes."""
    rank, port = sys.argv[1:]
    os.environ |= {"RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    dist.initialise("cpu")
    tensor = torch.zeros(_NUM_BYTES // 4)
    best = float("inf")
    for _ in range(_NUM_EXCHANGES):
        c10d.barrier()
        began = time.perf_counter()
        dist.all_reduce_sum(tensor)
        best = min(best, time.perf_counter() - began)
    dist.shutdown()
    sys.stdout.write(str(best / _NUM_BYTES))


if __name__ == "__main__":
    main()
