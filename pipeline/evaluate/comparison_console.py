"""A comparison on the terminal: a table a set, the verdicts, and the report's path last."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.evaluate.comparison_report import Column, columns_of
from pipeline.evaluate.comparison_result import ComparedSet, Comparison, OnSet


def print_comparison(comparison: Comparison, report: Path, console: Console) -> None:
    """Notes, the tables, a sentence a test and, as the last line, where the report is."""
    for note in comparison.notes:
        console.print(f"note: {note}", style="yellow", highlight=False, markup=False)
    for one in comparison.sets:
        console.print(set_table(one))
    for one in comparison.sets:
        for test in one.tests:
            console.print(test.sentence, highlight=False, markup=False, soft_wrap=True)
    console.print(f"report: {report}", highlight=False, markup=False, soft_wrap=True)


def set_table(one: ComparedSet) -> Table:
    """A row a model; bold where it is clearly better than every other."""
    columns = columns_of(one.models[0].figures)
    title = f"{escape(one.name)}, {one.num_pairs:,} pairs"
    table = Table(title=title, title_justify="left")
    table.add_column("model")
    for column in columns:
        table.add_column(column.title, justify="right")
    for model in one.models:
        table.add_row(escape(model.model), *(_cell(model, column) for column in columns))
    return table


def _cell(model: OnSet, column: Column) -> str:
    figure = model.figures[column.key]
    text = column.write(figure.value)
    if column.key == "accuracy":
        text += f" ± {column.write(model.accuracy_std)}"
    return f"[bold]{text}[/bold]" if figure.is_clearly_best else text
