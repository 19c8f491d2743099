"""The charts of the report's sections that are there when they were asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from markupsafe import Markup

from pipeline.evaluate.charts import Axis, Series, chart, linear_axis, percent_axis
from pipeline.evaluate.result import Evaluation, Identification
from pipeline.evaluate.result_sections import PeopleMap, Quality, Robustness, RobustnessCurve
from pipeline.evaluate.scatter import legend, scatter

KIND_TITLES = {
    "blur": "Blur",
    "low_resolution": "Low resolution",
    "jpeg": "JPEG compression",
    "occlusion": "Occlusion",
    "brightness": "Brightness",
}
MEASURE_TITLES = {"norm": "length of the embedding", "ser_fiq": "SER-FIQ"}

_MEASURE_SERIES = {"norm": "plain", "ser_fiq": "same"}
_REJECTED_UP_TO = 0.5


@dataclass(frozen=True)
class TitledChart:
    """A chart and what stands above it."""

    title: str
    svg: Markup


@dataclass(frozen=True)
class SectionCharts:
    """Empty where a section was not asked for."""

    cmc: Markup = field(default_factory=Markup)
    robustness: list[TitledChart] = field(default_factory=list)
    quality: Markup = field(default_factory=Markup)
    maps: list[TitledChart] = field(default_factory=list)
    legend: Markup = field(default_factory=Markup)
    kind_titles: dict[str, str] = field(default_factory=lambda: KIND_TITLES)
    measure_titles: dict[str, str] = field(default_factory=lambda: MEASURE_TITLES)
    measure_series: dict[str, str] = field(default_factory=lambda: _MEASURE_SERIES)


def section_charts(evaluation: Evaluation) -> SectionCharts:
    """Draw what the evaluation holds."""
    robustness, quality, people_map = evaluation.robustness, evaluation.quality, evaluation.people_map
    identification = evaluation.identification
    return SectionCharts(
        cmc=Markup() if identification is None else cmc_chart(identification),
        robustness=[] if robustness is None else robustness_charts(robustness),
        quality=Markup() if quality is None or not quality.measures else reject_chart(quality),
        maps=[] if people_map is None else map_charts(people_map),
        legend=Markup() if people_map is None else legend(people_map.people),
    )


def cmc_chart(identification: Identification) -> Markup:
    """The cumulative match characteristic: found among the first k, over k."""
    ranks = [float(k) for k in range(1, len(identification.cmc) + 1)]
    y = percent_axis(0.0, 1.0, 0.2, "found among the first k, %")
    x = linear_axis([1.0, ranks[-1]], "k")
    x = Axis(1.0, max(ranks[-1], 2.0), [tick for tick in x.ticks if 1.0 <= tick[0] <= ranks[-1]], "k")
    return chart("CMC", x, y, [Series("plain", ranks, identification.cmc)])


def robustness_charts(robustness: Robustness) -> list[TitledChart]:
    """Accuracy over strength, a chart a kind, all with one scale of accuracy."""
    curves, clean = robustness.curves, robustness.clean
    points = [clean, *(point for curve in curves for point in curve.points)]
    values = [value for point in points for value in (point.accuracy, point.accuracy_at_clean_threshold)]
    has_rate = clean.tar_at_far_1e_3 is not None
    lowest = 0.0 if has_rate else math.floor(10 * min(values)) / 10
    y = percent_axis(lowest, 1.0, 0.2 if lowest < 0.4 else 0.1, "%")
    return [TitledChart(KIND_TITLES[curve.kind], _robustness_chart(curve, robustness, y, has_rate)) for curve in curves]


def reject_chart(quality: Quality) -> Markup:
    """FNMR over the share of same pairs rejected, up to a half: beyond it few pairs are left."""
    series = [Series("chance", [0.0, _REJECTED_UP_TO], [quality.start_fnmr] * 2)]
    for name, figures in quality.measures.items():
        points = [(x, y) for x, y in zip(figures.rejected, figures.fnmr, strict=True) if x <= _REJECTED_UP_TO]
        ends = [*points, (_REJECTED_UP_TO, points[-1][1])]
        x, y = zip(*ends, strict=True)
        series.append(Series(_MEASURE_SERIES[name], x, y, step=True, caption=MEASURE_TITLES[name]))
    highest = max(max(one.y) for one in series)
    rates = linear_axis([0.0, 100 * highest], "false non-match rate, %")
    scaled = Axis(
        rates.low / 100, rates.high / 100, [(value / 100, label) for value, label in rates.ticks], rates.label
    )
    x_axis = percent_axis(0.0, _REJECTED_UP_TO, 0.1, "same pairs rejected, worst photos first, %")
    return chart("Error versus reject", x_axis, scaled, series)


def map_charts(people_map: PeopleMap) -> list[TitledChart]:
    """A scatter chart a map; hovering names the photo."""
    return [
        TitledChart(one.method, scatter(one.method, one.x, one.y, people_map.person, people_map.photo))
        for one in people_map.maps
    ]


def _robustness_chart(curve: RobustnessCurve, robustness: Robustness, y: Axis, has_rate: bool) -> Markup:
    clean = robustness.clean
    points = list(curve.points)
    if curve.neutral is not None:
        points = sorted(
            [*points, clean.model_copy(update={"strength": curve.neutral})], key=lambda point: point.strength
        )
    strengths = [point.strength for point in points]
    if curve.kind == "occlusion":
        x = percent_axis(0.0, max(strengths), 0.1, "share of the crop covered, %")
    else:
        x = linear_axis(strengths, curve.unit, from_zero=True)
    series = [Series("chance", [x.low, x.high], [clean.accuracy] * 2, caption="undegraded")]
    if has_rate:
        rates = [point.tar_at_far_1e_3 or 0.0 for point in points]
        series.append(Series("same", strengths, rates, caption="TAR at FAR 1e-3"))
    fixed = [point.accuracy_at_clean_threshold for point in points]
    series.append(Series("different", strengths, fixed, caption="accuracy at the threshold for undegraded photos"))
    chosen = [point.accuracy for point in points]
    series.append(Series("plain", strengths, chosen, caption="accuracy, threshold chosen on degraded pairs"))
    return chart(f"{KIND_TITLES[curve.kind]}: accuracy over strength", x, y, series)
