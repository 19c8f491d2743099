"""Search for a better setting of a recipe, each trial a distributed run.

Starts a Ray cluster on this machine, or joins one. Writes `results.parquet`,
`report.html` and `best.yaml`, a recipe for `launch/train.py`, into the
search's output. A search that was interrupted goes on with `--resume`.

    python launch/tune.py --config configs/tune/demo.yaml

    python launch/tune.py --config configs/tune/demo.yaml --num-samples 20

    python launch/tune.py --config configs/tune/demo.yaml --resume

    python launch/tune.py --config configs/tune/demo.yaml --address auto       # the Ray cluster that this node is of

    python launch/tune.py --config configs/tune/demo.yaml --check              # try the space's values on the recipe
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.config.errors import run_command

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")


@app.command(help=__doc__)
def main(
    config: Annotated[Path, typer.Option(help="a search, see configs/tune/")],
    address: Annotated[str | None, typer.Option(help="a running cluster: auto or HOST:PORT; default: one here")] = None,
    num_samples: Annotated[int | None, typer.Option(min=1, help="settings to try, over the file's value")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with what stands in output, if there is any")] = False,
    check: Annotated[bool, typer.Option("--check", help="try the space's values on the recipe, then stop")] = False,
    dashboard_host: Annotated[str, typer.Option(help="address that the dashboard listens on")] = "127.0.0.1",
    dashboard_port: Annotated[int, typer.Option(help="port of the dashboard")] = 8265,
) -> None:
    """Run or check a search."""
    from pipeline.config.load import read_yaml, validate_tree
    from pipeline.config.search import SearchConfig

    tree = read_yaml(config)
    if num_samples is not None:
        tree["num_samples"] = num_samples
    search = validate_tree(SearchConfig, tree, str(config))
    from pipeline.tuning.space import check_search

    check_search(search)
    if check:
        typer.echo(f"fine: {len(search.space)} parameters, {search.num_samples} settings of {search.recipe}")
        return
    from pipeline.tuning.run import run

    try:
        run(search, address, resume, dashboard_host, dashboard_port)
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command goes on with --resume", err=True)
        raise SystemExit(130) from None


if __name__ == "__main__":
    run_command(app)
