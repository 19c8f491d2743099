"""`preprocess withdraw`."""

from __future__ import annotations

from pathlib import Path

import typer


def withdraw(
    data: Path = typer.Argument(..., metavar="DATA", help="A finished data set."),
    key: list[str] = typer.Option([], help="A sample's key; repeat it for more."),
    identity: list[str] = typer.Option([], help="All photos of a person; repeat it for more."),
    source_sha256: list[str] = typer.Option([], help="The sha256 of a source photo; repeat it for more."),
    listed: Path | None = typer.Option(
        None, "--list", help="A text file: a key a line, or identity:NAME, source_sha256:HASH."
    ),
    reason: str = typer.Option("", help="For the record, in tombstones.parquet."),
) -> None:
    """Withdraw samples: their slots are masked from the next start of any run on, and their rejects lose thumbnails.

    Neither digest nor order changes, so runs in progress can be resumed. The bytes stay until `preprocess compact`
    writes a data set without them; readers of other projects see them until then.

    [bold]Examples[/bold]

        preprocess withdraw data --identity "person 12" --reason "asked on 3 May"

        preprocess withdraw data --key 000000123 --key 000000456

        preprocess withdraw data --list withdrawn.txt
    """
    from preprocess.storage import one_line_errors
    from preprocess.withdraw import read_list
    from preprocess.withdraw import withdraw as withdraw_samples

    wanted = {"key": list(key), "identity": list(identity), "source_sha256": list(source_sha256)}
    if listed is not None:
        for name, values in read_list(listed).items():
            wanted[name] += values
    with one_line_errors(data):
        done = withdraw_samples(data, wanted, reason)
    before = f", {done.num_before:,} were before" if done.num_before else ""
    thumbnails = f"; {done.num_thumbnails:,} left the ledger of rejects" if done.num_thumbnails else ""
    typer.echo(f"{data}: {done.num_new:,} samples withdrawn{before}{thumbnails}")
