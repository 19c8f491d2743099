"""The evaluation's face on the terminal: a progress bar, a table, and the report's path last."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from pipeline.evaluate.result import Bounds, Evaluation, GroupFigures, Identification, Intervals, Model
from pipeline.evaluate.section_tables import section_tables


@contextmanager
def embedding_progress(total: int, doing: str = "embedding") -> Iterator[Callable[[int], None]]:
    """A bar on standard error; yields the function that moves it on by a number of photos."""
    columns = (
        TextColumn(doing),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("photos"),
        TextColumn("{task.fields[rate]}"),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    if not console.is_terminal:  # there the bar appears only when it is full
        console.print(f"{doing} {total:,} photos", highlight=False)
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(doing, total=total, rate="")

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
    for name, groups in (evaluation.verification.by_group or {}).items():
        console.print(group_table(name, groups))
    if evaluation.identification is not None:
        console.print(identification_table(evaluation.identification))
    for table in section_tables(evaluation):
        console.print(table)
    console.print(f"report: {report}", highlight=False, markup=False, soft_wrap=True)


def summary_table(evaluation: Evaluation) -> Table:
    """The headline figures: measure, value and, where there are intervals, these."""
    figures = evaluation.verification
    pairs = "pairs of templates" if figures.unit == "template" else "pairs"
    table = Table(
        title=f"Verification, {figures.num_pairs:,} {pairs}{_about_intervals(figures.intervals)}",
        title_justify="left",
        caption=escape(f"model: {_describe(evaluation.model)}"),
        caption_justify="left",
        show_header=False,
    )
    table.add_column("measure")
    table.add_column("value", justify="right")
    if figures.intervals is not None:
        table.add_column("interval")

    def add(name: str, value: str, key: str = "", style: str | None = None) -> None:
        table.add_row(name, value, *([_interval(figures.intervals, key)] if figures.intervals else []), style=style)

    if figures.accuracy is not None:
        mean, std, folds = figures.accuracy.mean, figures.accuracy.std, len(figures.accuracy.per_fold)
        add(f"accuracy, {folds} folds", f"{mean:.4f} ± {std:.4f}", "accuracy", "bold")
    add("area under the ROC curve", f"{figures.auc:.4f}", "auc")
    add("equal error rate", f"{figures.eer:.4f}", "eer")
    add("d'", "no spread" if figures.d_prime is None else f"{figures.d_prime:.3f}", "d_prime")
    for name, point in figures.tar_at_far.items():
        if point.tar is None:  # the rarer ones need even more
            add(f"TAR at FAR {name}", f"needs {point.num_different_needed:,} different pairs")
            break
        add(f"TAR at FAR {name}", f"{point.tar:.4f}", f"tar_at_far.{name}")
    add("best threshold (cosine)", f"{figures.best_threshold.cosine:.3f}")
    fixed = figures.fixed_threshold
    add(f"accuracy at cosine {fixed.cosine:.2f}", f"{fixed.accuracy:.4f}")
    carried = figures.carried_threshold
    if carried is not None:
        add(f"accuracy at cosine {carried.cosine:.3f}", f"{carried.accuracy:.4f}")
        add("  FAR, TAR there", f"{carried.far:.4f}, {carried.tar:.4f}")
    add("pairs dropped", f"{figures.num_pairs_dropped:,}")
    add("photos missing", f"{len(figures.missing):,}")
    return table


def group_table(name: str, groups: Sequence[GroupFigures]) -> Table:
    """The figures within each group."""
    table = Table(title=f"Within each {escape(name)}", title_justify="left")
    table.add_column("group")
    for title in ("pairs", "accuracy", "equal error rate", "TAR at FAR 1e-2", "TAR at FAR 1e-3"):
        table.add_column(title, justify="right")
    for one in groups:
        accuracy = "" if one.accuracy is None else f"{one.accuracy:.4f} ± {one.accuracy_std:.4f}"
        tar = [None if one.tar_at_far is None else one.tar_at_far[far].tar for far in ("1e-2", "1e-3")]
        table.add_row(escape(one.group), f"{one.num_pairs:,}", accuracy, *(_rate(rate) for rate in (one.eer, *tar)))
    return table


def identification_table(figures: Identification) -> Table:
    """Closed-set ranks with their intervals, then the open set."""
    title = f"Identification, {figures.num_probes:,} photos among {figures.num_gallery:,} people"
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column("measure")
    table.add_column("value", justify="right")
    table.add_column("interval")
    for k, rate in figures.rank.items():
        table.add_row(f"rank {k}", f"{rate:.4f}", _bounds(figures.rank_intervals[k]))
    for name, point in figures.open_set.tpir_at_fpir.items():
        label = f"TPIR at FPIR {name}, {figures.open_set.num_gallery:,} people"
        if point.tpir is None:
            table.add_row(label, f"needs {point.num_unmated_needed:,} photos of others")
            break
        table.add_row(label, f"{point.tpir:.4f}")
    if figures.distractors is not None:
        for size, rate in figures.distractors.rank1.items():
            table.add_row(f"rank 1 among {int(size):,} distractors", f"{rate:.4f}")
    if figures.num_missing:
        table.add_row("photos missing", f"{figures.num_missing:,}")
    return table


def _describe(model: Model) -> str:
    """What is known of a model, in a line."""
    said = [] if model.kind == "run" else [model.checkpoint]
    if model.weights == "ema":
        said.append("moving average of the weights")
    if model.step is not None:
        said.append(f"step {model.step:,}")
    if model.num_parameters is not None:
        said.append(f"{model.num_parameters:,} parameters")
    return ", ".join(said)


def _about_intervals(intervals: Intervals | None) -> str:
    if intervals is None:
        return ""
    unit = "people" if intervals.unit == "identity" else "pairs"
    return f"; {intervals.level:.0%} intervals over {unit}"


def _interval(intervals: Intervals, key: str) -> str:
    """The interval of a figure as text; empty where it has none."""
    return _bounds(intervals.figures.get(key))


def _rate(rate: float | None) -> str:
    """A share as text; empty where there were too few pairs for it."""
    return "" if rate is None else f"{rate:.4f}"


def _bounds(bounds: Bounds | None) -> str:
    return "" if bounds is None else f"{bounds.low:.4f} to {bounds.high:.4f}"
