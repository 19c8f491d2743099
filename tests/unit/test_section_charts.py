"""Charts of the sections: where marks fall, that groups can be told apart, that names are escaped."""

from __future__ import annotations

import re

import pytest

from pipeline.evaluate import scatter
from pipeline.evaluate.result_sections import (
    Coordinates,
    PeopleMap,
    Quality,
    RejectFigures,
    Robustness,
    RobustnessCurve,
    RobustnessPoint,
)
from pipeline.evaluate.section_charts import map_charts, reject_chart, robustness_charts


def test_marks_fall_where_they_should() -> None:
    svg = str(scatter.scatter("t", [0.0, 1.0, 2.0], [5.0, 5.0, 9.0], [0, 1, 0], ["a", "b<", "c"]))
    places = re.findall(r"translate\(([\d.]+) ([\d.]+)\)", svg)
    # Larger y is higher up.
    low, high = scatter.HEIGHT - 14, 14
    assert [(float(x), float(y)) for x, y in places] == [
        (14, low),
        (scatter.WIDTH / 2, low),
        (scatter.WIDTH - 14, high),
    ]
    assert "<title>b&lt;</title>" in svg
    flat = str(scatter.scatter("t", [3.0, 3.0], [0.0, 1.0], [0, 0], ["", ""]))
    assert flat.count(f"translate({scatter.WIDTH / 2:.1f} ") == 2
    assert "path" not in scatter.scatter("t", [], [], [], [])


def test_groups_can_be_told_apart() -> None:
    """Of sixty, those with one shape have hues a dozen degrees apart or more."""
    marks = re.findall(r'--hue:(\d+)" d="([^"]+)"', str(scatter.legend(["n"] * 60)))
    assert len(set(marks)) == 60
    for number, (hue, shape) in enumerate(marks):
        for other, other_shape in marks[:number]:
            away = abs(int(hue) - int(other)) % 360
            assert shape != other_shape or min(away, 360 - away) >= 12
    assert "&lt;b&gt;" in scatter.legend(["<b>"])


def test_a_map_names_its_photos() -> None:
    section = PeopleMap(
        protocol="p",
        people=["Ann", "Bo"],
        person=[0, 1],
        photo=["Ann_0007", "bo/12.jpg"],
        maps=[Coordinates(method="one", x=[0, 1], y=[0, 1]), Coordinates(method="two", x=[0, 0], y=[0, 0])],
    )
    first, second = map_charts(section)
    assert (first.title, second.title) == ("one", "two")
    assert "<title>Ann_0007</title>" in first.svg
    assert "<title>bo/12.jpg</title>" in first.svg


def point(strength: float, accuracy: float, rate: float | None) -> RobustnessPoint:
    return RobustnessPoint(
        strength=strength,
        accuracy=accuracy,
        std=0.0,
        accuracy_at_clean_threshold=accuracy - 0.05,
        far_at_clean_threshold=0.0,
        tar_at_clean_threshold=0.0,
        tar_at_far_1e_3=rate,
    )


@pytest.mark.parametrize("rate", [None, 0.5])
def test_curves_start_at_what_changes_nothing(rate: float | None) -> None:
    section = Robustness(
        protocol="p",
        num_probes=1,
        clean=point(0, 0.9, rate),
        clean_threshold=1.0,
        curves=[
            RobustnessCurve(
                kind="brightness", unit="factor", neutral=1.0, points=[point(0.5, 0.8, rate), point(2, 0.75, rate)]
            ),
            RobustnessCurve(
                kind="jpeg", unit="quality", neutral=None, points=[point(50, 0.9, rate), point(5, 0.7, rate)]
            ),
        ],
    )
    brightness, jpeg = (str(one.svg) for one in robustness_charts(section))
    line = re.search(r'class="line plain" d="M([^"]+)"', brightness)
    assert line is not None
    # The undegraded point lies between the two strengths, and higher.
    places = [tuple(map(float, place.split())) for place in line[1].split("L")]
    assert [x for x, _ in places] == sorted(x for x, _ in places)
    assert len(places) == 3
    assert places[1][1] == min(y for _, y in places)
    assert jpeg.count("L") > 0
    assert len(re.findall(r'class="line plain" d="M[^"L]+L[^"L]+"', jpeg)) == 1
    assert ('class="line same"' in brightness) == (rate is not None)
    # Without TAR the axis starts near the worst accuracy, 65 %.
    ticks = re.findall(r'text-anchor="end">(\d+)<', jpeg)
    assert (ticks[0], ticks[-1]) == ("60" if rate is None else "0", "100")


def test_rejects_are_drawn_up_to_a_half() -> None:
    def quality(**measures: RejectFigures) -> Quality:
        return Quality(
            protocol="p",
            num_same=10,
            threshold=1.0,
            start_fnmr=0.1,
            up_to=0.2,
            area_of_chance=0.02,
            least_area=0.0,
            measures=measures,
            left_out={},
        )

    figures = RejectFigures(rejected=[0.0, 0.4, 0.8], fnmr=[0.1, 0.2, 0.9], area=0.02)
    svg = str(reject_chart(quality(norm=figures)))
    line = re.search(r'class="line plain" d="M([^"]+)"', svg)
    assert line is not None
    places = [tuple(map(float, place.split())) for place in line[1].split("L")]
    # Level, a step up at 40 %, and level to the frame at 50 %: what comes at 80 % is not drawn.
    left, right = 66, 460
    assert [x for x, _ in places] == pytest.approx(
        [left, left + 0.8 * (right - left), left + 0.8 * (right - left), right]
    )
    assert places[0][1] == places[1][1] > places[2][1] == places[3][1]
    assert 'class="line same"' not in svg
    assert 'class="line same"' in str(reject_chart(quality(norm=figures, ser_fiq=figures)))
