"""Hold the store through which elastic torchrun agents find each other, apart from all of them.

    python -m pipeline.rendezvous --port 29400

The agents then join with

    python -m pipeline.supervise -- torchrun --nnodes 1:4 --nproc-per-node 8 --max-restarts 100 \\
        --rdzv-backend c10d --rdzv-endpoint HOST:29400 --rdzv-conf is_host=false --rdzv-id RUN launch/train.py …

(A bare torchrun needs TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, which the supervisor sets: otherwise an agent that joins
later waits in vain for an address that is written in the first round only.)

Without this process the store lives in one of the agents, and all others end when that one is killed. SIGTERM or Ctrl-C
ends it. A new run takes another `--rdzv-id`; the store may serve many. One that is started anew has forgotten all
agents: they end, and so have to be started anew, too.
"""

from __future__ import annotations

import signal
import threading
from typing import Annotated, Any

import typer

from pipeline.config.errors import UserError, run_command

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")


@app.command(help=__doc__)
def main(
    port: Annotated[int, typer.Option(min=0, max=65535, help="to listen on; 0: the system chooses one")] = 29400,
    host: Annotated[str, typer.Option(help="name or address to listen on")] = "0.0.0.0",
) -> None:
    """Hold the store until told to end."""
    store = open_store(host, port)
    ended = threading.Event()

    def end(signum: int, frame: Any) -> None:
        ended.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    typer.echo(f"rendezvous store on port {store.port}")
    ended.wait()


def open_store(host: str, port: int) -> Any:
    """Listen.

    Raises:
        UserError: the port is taken, or the address is not this machine's.
    """
    from torch.distributed import TCPStore

    try:
        return TCPStore(host, port, is_master=True, wait_for_workers=False)
    except RuntimeError as error:  # DistNetworkError among them
        reason = str(error).splitlines()[0]
        raise UserError(f"{host}:{port}", f"cannot listen there ({reason})", "a free port", "--port N") from None


if __name__ == "__main__":
    run_command(app)
