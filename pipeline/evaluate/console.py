"""The evaluation's face on the terminal: a progress bar, a table, and the report's path last."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from pipeline.evaluate.result import Evaluation


@contextmanager
def embedding_progress(total: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error; yields the function that moves it on by a number of photos."""
    columns = (
        TextColumn("embedding"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("photos"),
        TextColumn("{task.fields[rate]}"),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    if not console.is_terminal:  # there the bar appears only when it is full
        console.print(f"embedding {total:,} photos", highlight=False)
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("embedding", total=total, rate="")

        def advance(count: int) -> None:
            progress.advance(task, count)
            speed = progress.tasks[0].speed
            progress.update(task, rate=f"{speed:,.0f}/s" if speed else "")

        yield advance


def print_summary(evaluation: Evaluation, report: Path, console: Console) -> None:
    """Notes, the table of figures and, as the last line, where the report is."""
    for note in evaluation.notes:
        console.print(f"note: {note}", style="yellow", highlight=False, markup=False)
    console.print(summary_table(evaluation))
    console.print(f"report: {report}", highlight=False, markup=False, soft_wrap=True)


def summary_table(evaluation: Evaluation) -> Table:
    """The headline figures, two columns."""
    figures = evaluation.verification
    folds = len(figures.accuracy.per_fold)
    table = Table(title=f"Verification, {figures.num_pairs:,} pairs", title_justify="left", show_header=False)
    table.add_column("measure")
    table.add_column("value", justify="right")
    table.add_row(f"accuracy, {folds} folds", f"{figures.accuracy.mean:.4f} ± {figures.accuracy.std:.4f}", style="bold")
    table.add_row("area under the ROC curve", f"{figures.auc:.4f}")
    table.add_row("equal error rate", f"{figures.eer:.4f}")
    for name, point in figures.tar_at_far.items():
        value = f"needs {point.num_different_needed:,} different pairs" if point.tar is None else f"{point.tar:.4f}"
        table.add_row(f"TAR at FAR {name}", value)
    threshold = figures.best_threshold
    table.add_row("best threshold (cosine)", f"{threshold.cosine:.3f}")
    table.add_row("pairs dropped, photos missing", f"{figures.num_pairs_dropped:,}, {len(figures.missing):,}")
    model = evaluation.model
    weights = "moving average of the weights, " if model.weights == "ema" else ""
    table.add_row("model", escape(f"{weights}step {model.step:,}, {model.num_parameters:,} parameters"))
    return table
