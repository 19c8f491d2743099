"""The HTML report of a comparison: one file that opens without a network, light and dark, on a phone and on paper."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from pipeline.evaluate.charts import Series, chart, roc_frame
from pipeline.evaluate.comparison_result import ComparedSet, Comparison, Figure, FigureDifference
from pipeline.evaluate.page import render_page
from pipeline.evaluate.result import Bounds

_NUM_RATES = 2
"""TAR is shown at the strictest rates that were measured."""


@dataclass(frozen=True)
class Column:
    """A figure in the tables: how it is called and written."""

    key: str
    title: str
    scale: float
    places: int

    def write(self, value: float | None, *, signed: bool = False) -> str:
        """The figure as text; a dash where it is not defined."""
        if value is None:
            return "–"
        text = f"{self.scale * value:{'+' if signed else ''}.{self.places}f}"
        # what rounds to nothing has no sign
        return text.lstrip("+-") if float(text) == 0.0 else text.replace("-", "−")

    def write_bounds(self, bounds: Bounds | None, *, signed: bool = False) -> str:
        """The interval as text; empty where there is none."""
        if bounds is None:
            return ""
        return f"{self.write(bounds.low, signed=signed)} to {self.write(bounds.high, signed=signed)}"


def columns_of(figures: dict[str, Figure] | dict[str, FigureDifference]) -> list[Column]:
    """The columns that tables show of a set's figures."""
    rates = [key for key in figures if key.startswith("tar_at_far.")][-_NUM_RATES:]
    return [
        Column("accuracy", "accuracy, %", 100.0, 2),
        *(Column(key, f"TAR at FAR {key.removeprefix('tar_at_far.')}, %", 100.0, 2) for key in rates),
        Column("eer", "EER, %", 100.0, 2),
        Column("auc", "AUC", 1.0, 4),
    ]


def render_comparison(comparison: Comparison) -> str:
    """Fill the template; every text is escaped."""
    numbers = {model.name: number for number, model in enumerate(comparison.models)}
    return render_page(
        "pipeline.evaluate",
        "comparison.html.jinja",
        comparison=comparison,
        numbers=numbers,
        columns={one.pairs_sha256: columns_of(one.models[0].figures) for one in comparison.sets},
        charts={one.pairs_sha256: roc_chart(one, numbers) for one in comparison.sets},
        accuracy=Column("accuracy", "accuracy, %", 100.0, 2),
    )


def roc_chart(one: ComparedSet, numbers: dict[str, int]) -> Markup:
    """All models' TAR over FAR.

    Args:
        one: the set.
        numbers: by model, what picks its colour and dashes: the class `m0`, `m1`, …
    """
    x, y, chance = roc_frame(one.num_different)
    measured = [
        Series(f"m{numbers[model.model]}", model.roc.far, model.roc.tar, step=True, caption=model.model)
        for model in one.models
    ]
    return chart(f"ROC of {len(one.models)} models on {one.name}", x, y, [chance, *measured])
