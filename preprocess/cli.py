"""The `preprocess` command: photos in, shards and a manifest out.

    preprocess synth build/photos --identities 100 --photos 20
    preprocess shard build/photos build/data --val-identities 0.1
    preprocess verify build/data

Each command stands in a module of `preprocess.commands` and imports its implementation when it runs, so that `--help`
is quick.
"""

from __future__ import annotations

import typer

from pipeline.config.errors import run_command
from preprocess.commands.bench import bench
from preprocess.commands.clean import clean
from preprocess.commands.compact import compact
from preprocess.commands.export import export
from preprocess.commands.import_bin import import_bin
from preprocess.commands.preview import preview
from preprocess.commands.shard import shard
from preprocess.commands.stats import stats
from preprocess.commands.status import status
from preprocess.commands.synth import synth
from preprocess.commands.verify import verify
from preprocess.commands.weights import weights
from preprocess.commands.withdraw import withdraw

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)

_COMMANDS = (synth, shard, import_bin, status, verify, stats, preview, bench, clean, withdraw, compact, export, weights)

for _command in _COMMANDS:
    app.command()(_command)


@app.callback()
def _root() -> None:
    """Photos in, verified shards and a manifest out."""


def main() -> None:
    """Entry point of the console script."""
    run_command(app)


if __name__ == "__main__":
    main()
