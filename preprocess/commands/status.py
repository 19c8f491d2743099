"""`preprocess status`."""

from __future__ import annotations

from pathlib import Path

import typer


def status(
    out: Path = typer.Argument(..., metavar="OUT", help="A data set that is being made, or is finished."),
    watch: bool = typer.Option(False, "--watch", help="Look again every few seconds until it is finished."),
    interval: float = typer.Option(2.0, min=0.1, help="Seconds between two looks."),
) -> None:
    """Show shards and photos done, rate, time left, rejects by reason, and which stage takes the time.

    It only reads, so it may run beside `preprocess shard` on any machine that sees OUT, whichever driver works.

    [bold]Examples[/bold]

        preprocess status data

        preprocess status data --watch
    """
    import time

    from rich.console import Console
    from rich.live import Live

    from preprocess.status import StatusReader, render
    from preprocess.storage import one_line_errors

    console = Console()
    with one_line_errors(out):
        reader = StatusReader(out)
        found = reader.look()
        if not watch:
            console.print(render(found, out))
            return
        try:
            with Live(render(found, out), console=console, auto_refresh=False) as live:
                while not found.is_finished:
                    time.sleep(interval)
                    found = reader.look()
                    live.update(render(found, out), refresh=True)
        except KeyboardInterrupt:
            return
