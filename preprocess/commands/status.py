"""`preprocess status`."""

from __future__ import annotations

from pathlib import Path

import typer


def status(
    out: Path = typer.Argument(..., metavar="OUT", help="The folder of a data set, made or under way."),
    watch: bool = typer.Option(False, "--watch", help="Look again every few seconds, until it is finished."),
) -> None:
    """Show how far a data set is: photos, shards, rate, time to go, rejects by reason, the slowest stage.

    It looks at the files, whichever driver writes them, and disturbs nothing.

    [bold]Examples[/bold]

        preprocess status data

        preprocess status data --watch
    """
    import time
    from collections import Counter

    from rich.console import Console
    from rich.live import Live

    from preprocess.status import open_plan, read_status, show
    from preprocess.storage import one_line_errors

    console = Console()
    with one_line_errors(out):
        plan = open_plan(out)
        known: dict[str, Counter[str]] = {}
        found = read_status(out, plan, known)
        if not watch:
            console.print(show(out, found))
            return
        with Live(show(out, found), console=console, auto_refresh=False) as live:
            while not found.is_finished:
                time.sleep(3)
                found = read_status(out, plan, known)
                live.update(show(out, found), refresh=True)
