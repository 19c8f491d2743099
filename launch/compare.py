"""Compare models side by side on the test sets they share.

Each folder holds one evaluation of one model on one test set, as
`launch/evaluate.py` writes them. Models are measured on the same pairs, and each
is tested against the baseline: McNemar's test, and the bootstrap interval of the
paired difference. Writes `comparison.json` and `comparison.html`. One model on
several sets gives a table of them.

    python launch/compare.py build/a/lfw build/b/lfw --output FOLDER
    python launch/compare.py build/*/lfw --baseline build/a/lfw --output FOLDER
"""

from __future__ import annotations

import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from pipeline.config.errors import UserError, run_command

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")


@app.command(help=__doc__)
def main(
    folders: Annotated[list[Path], typer.Argument(help="folders with evaluation.json and scores.parquet")],
    output: Annotated[Path, typer.Option(help="the folder to write to")],
    baseline: Annotated[
        Path | None, typer.Option(help="a folder of the model that others are tested against; default: the first")
    ] = None,
) -> None:
    """Read, join, test, report."""
    from importlib.metadata import version

    from rich.console import Console

    from pipeline.evaluate import comparison_console, comparison_report, intervals
    from pipeline.evaluate.comparison_result import Comparison
    from pipeline.evaluate.evaluated import open_folders
    from pipeline.evaluate.result import write_text
    from pipeline.evaluate.side_by_side import compare

    resolved = [folder.resolve() for folder in folders]
    if baseline is not None and baseline.resolve() not in resolved:
        raise UserError("--baseline", f"{baseline}, which is not compared", "one of the folders")
    evaluations = open_folders(folders)
    found = compare(evaluations, 0 if baseline is None else resolved.index(baseline.resolve()))
    comparison = Comparison(
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        command=shlex.join(["python", *sys.argv]),
        version=version("facemill"),
        level=intervals.LEVEL,
        num_resamples=intervals.NUM_RESAMPLES,
        correction=f"Holm's method over {found.num_tests} tests",
        baseline=found.baseline,
        models=found.models,
        sets=found.sets,
        notes=found.notes,
    )
    write_text(output / "comparison.html", comparison_report.render_comparison(comparison))
    write_text(output / "comparison.json", comparison.model_dump_json(indent=2) + "\n")
    comparison_console.print_comparison(comparison, output / "comparison.html", Console())


if __name__ == "__main__":
    run_command(app)
