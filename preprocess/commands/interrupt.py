"""Ctrl-C during a command that goes on where it was stopped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer


@contextmanager
def goes_on_after_ctrl_c() -> Iterator[None]:
    """Say so in one line and leave with exit code 130, as the programs in `launch/` do; typer would say nothing."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command goes on where it stopped", err=True)
        raise typer.Exit(130) from None


@contextmanager
def interrupted_after_imports() -> Iterator[None]:
    """Import in this block. Compiled modules would turn a KeyboardInterrupt while they load into an ImportError."""
    from preprocess.workers import stop_between_tasks

    with goes_on_after_ctrl_c(), stop_between_tasks():
        yield
