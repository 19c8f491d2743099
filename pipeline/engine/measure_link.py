"""How fast ranks exchange tensors; run as a program, how fast two processes of this machine do so over gloo.

    python -m pipeline.engine.measure_link 0 PORT & python -m pipeline.engine.measure_link 1 PORT

The program is what `pipeline.engine.estimate` starts. Between machines the network decides instead.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable

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


def reduction_s_per_byte(device: torch.device) -> float:
    """Time to reduce a tensor over all ranks, divided by its size. Collective on all ranks."""
    tensor = torch.zeros(_NUM_BYTES // 4, device=device)
    return _best_time_s(device, lambda: dist.all_reduce_sum(tensor)) / _NUM_BYTES


def neighbour_bytes_per_s(device: torch.device) -> float:
    """How fast the rank before this one sends to it, while all send to the next one. Collective on all ranks."""
    rank, world_size = dist.rank(), dist.world_size()
    sent, received = (torch.zeros(_NUM_BYTES // 4, device=device) for _ in range(2))

    def exchange() -> None:
        works = c10d.batch_isend_irecv(
            [
                c10d.P2POp(c10d.isend, sent, (rank + 1) % world_size),
                c10d.P2POp(c10d.irecv, received, (rank - 1) % world_size),
            ]
        )
        for work in works:
            work.wait()

    return _NUM_BYTES / _best_time_s(device, exchange)


def _best_time_s(device: torch.device, exchange: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(_NUM_EXCHANGES):
        c10d.barrier()
        began = time.perf_counter()
        exchange()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return best


def main() -> None:
    """Entry point of each of the two processes."""
    rank, port = sys.argv[1:]
    os.environ |= {"RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    dist.initialise("cpu")
    answer = reduction_s_per_byte(torch.device("cpu"))
    dist.shutdown()
    sys.stdout.write(str(answer))


if __name__ == "__main__":
    main()
