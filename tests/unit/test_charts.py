"""Charts of the report: where points and ticks fall, and the curves that metrics give."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.evaluate import charts, report


def test_metrics_that_are_missing_or_cut_short(tmp_path: Path) -> None:
    assert report.read_metrics(tmp_path / "metrics.jsonl") == []
    assert report.training_curves([]) == []
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\nnoise\n[1]\n{"step": 2, "loss": NaN}\n{"step": 3, "loss": 1.0}\n{"st')
    records = report.read_metrics(path)
    assert [record["step"] for record in records] == [1, 2, 3]
    curves = report.training_curves(records)
    assert [(curve.title, curve.last) for curve in curves] == [("Training loss", "1")]
    many = report.training_curves([{"step": n, "loss": 1.0} for n in range(1, 50_000)])
    assert len(many[0].svg) < 12_000


def test_chart_points_fall_where_they_should() -> None:
    x, y = charts.Axis(0.0, 10.0, [(0.0, "0")], "x"), charts.Axis(0.0, 1.0, [(0.0, "0")], "y<")
    svg = str(charts.chart("t<", x, y, [charts.Series("plain", [0.0, 5.0, 10.0], [0.0, 0.5, 2.0])]))
    left, right, top, bottom = 66, charts.WIDTH - 20, 14, charts.HEIGHT - 46
    middle = f"{(left + right) / 2:g} {(top + bottom) / 2:g}"
    assert f'd="M{left} {bottom}L{middle}L{right} {top}"' in svg
    assert "y&lt;" in svg
    assert "t<" not in svg.replace("<title>", "").replace("</t", "").replace("<text", "").replace("t&lt;", "")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1234567, "1.235M"), (12000, "12k"), (0.25, "0.25"), (2.1e-7, "2.1e-7"), (1e-5, "1e-5"), (999, "999")],
)
def test_short_numbers(value: float, text: str) -> None:
    assert charts.number(value) == text


@pytest.mark.parametrize("values", [[], [0.0], [3.0, 3.0], [-1.0, 2.0], [1e-9, 2e-9], [0.0, 1e7]])
def test_axes_hold_their_values(values: list[float]) -> None:
    axis = charts.linear_axis(values, "x")
    assert axis.low < axis.high
    assert all(axis.low <= value <= axis.high for value in values)
    assert 2 <= len(axis.ticks) <= 12


def test_roc_axis_ends_at_one_false_accept() -> None:
    axis = charts.log_axis(1 / 3000, "FAR")
    assert [tick[1] for tick in axis.ticks] == ["1e-3", "1e-2", "1e-1", "1"]
    assert (axis.place(1 / 3000), axis.place(0.0), axis.place(1.0)) == (0.0, 0.0, 1.0)
    assert len(charts.log_axis(1e-4, "FAR").ticks) == 5
