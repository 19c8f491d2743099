"""The HTML report: one file that opens without a network, in light and dark, on a phone and on paper."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from markupsafe import Markup

from pipeline.evaluate.charts import Axis, Series, chart, linear_axis, number, roc_frame
from pipeline.evaluate.distractors import distractors_chart
from pipeline.evaluate.page import render_page
from pipeline.evaluate.pairs import Photo
from pipeline.evaluate.photos import Crop, PhotoSource, Rejected
from pipeline.evaluate.result import Evaluation, Histogram, TarAtFar, Verification
from pipeline.evaluate.run import ScoredPairs
from pipeline.evaluate.section_charts import section_charts
from pipeline.evaluate.verification import cosine
from pipeline.json_lines import read_lines

_GALLERY_PAIRS = 12
_CURVE_POINTS = 400
_CURVES = (
    ("loss", "loss", "Training loss"),
    ("target_cosine", "cosine", "Cosine to the right class centre"),
    ("lr", "learning rate", "Learning rate"),
    ("samples_per_s", "photos/s", "Training speed"),
)
"""Keys of `metrics.jsonl` that are drawn where they occur, their unit, and the chart's title."""


@dataclass(frozen=True)
class GalleryPair:
    """Two thumbnails side by side."""

    left: str
    right: str
    left_image: str
    """A `data:` address."""
    right_image: str
    score: float
    """Cosine."""
    is_error: bool
    """Whether the pair is on the wrong side of the best threshold."""


@dataclass(frozen=True)
class Curve:
    """One drawn training curve."""

    title: str
    svg: Markup
    last: str


def render_report(
    evaluation: Evaluation,
    false_matches: Sequence[GalleryPair],
    false_non_matches: Sequence[GalleryPair],
    curves: Sequence[Curve],
) -> str:
    """Fill the template; every text is escaped, names of people and paths included."""
    figures = evaluation.verification
    among = None if evaluation.identification is None else evaluation.identification.distractors
    return render_page(
        "pipeline.evaluate",
        "report.html.jinja",
        evaluation=evaluation,
        figures=figures,
        headline=headline_rate(figures),
        distractors=None if among is None else distractors_chart(among),
        roc=roc_chart(figures),
        histogram=histogram_chart(figures.histogram, figures.best_threshold.cosine),
        false_matches=false_matches,
        false_non_matches=false_non_matches,
        curves=curves,
        section_charts=section_charts(evaluation),
        config=_flatten(evaluation.model.config or {}),
    )


def headline_rate(figures: Verification) -> tuple[str, TarAtFar] | None:
    """The rate that stands at the top where there is no accuracy: TAR at FAR 1e-4, as papers on IJB give it.

    At the rarest rate that there are pairs for, where these do not carry 1e-4; None where they carry none.
    """
    rates = [(name, point) for name, point in figures.tar_at_far.items() if point.tar is not None]
    return next((rate for rate in rates if rate[0] == "1e-4"), rates[-1] if rates else None)


def roc_chart(figures: Verification) -> Markup:
    """TAR over FAR."""
    x, y, chance = roc_frame(figures.num_different)
    measured = Series("plain", figures.roc.far, figures.roc.tar, step=True, filled=True)
    return chart("ROC: true accept rate over false accept rate", x, y, [chance, measured])


def histogram_chart(histogram: Histogram, threshold: float) -> Markup:
    """Shares of same and different pairs at each cosine; the frame is cut to where there are pairs."""
    # Few pairs in narrow bins would draw noise.
    merged = next(width for width, least in ((1, 5000), (2, 1500), (4, 0)) if sum(histogram.same) >= least)
    edges = np.array(histogram.edges[::merged])
    same, different = (np.array(counts).reshape(-1, merged).sum(1) for counts in (histogram.same, histogram.different))
    occupied = np.flatnonzero(same + different)
    low, high = edges[max(occupied[0] - 1, 0)], edges[min(occupied[-1] + 2, len(edges) - 1)]
    shares = {
        name: 100.0 * counts / max(1, counts.sum()) for name, counts in (("different", different), ("same", same))
    }
    ticks = linear_axis([float(low), float(high)], "")
    x = Axis(float(low), float(high), [tick for tick in ticks.ticks if low <= tick[0] <= high], "score (cosine)")
    y = linear_axis([0.0, float(max(values.max() for values in shares.values()))], "share of pairs, %")
    inside = (edges[:-1] >= low - 1e-9) & (edges[1:] <= high + 1e-9)
    corners_x = np.repeat(np.append(edges[:-1][inside], high), 2)
    series = []
    for name, values in shares.items():
        corners_y = np.concatenate(([0.0], np.repeat(values[inside], 2), [0.0]))
        series.append(Series(name, corners_x.tolist(), corners_y.tolist(), filled=True))
    return chart("Scores of same and different pairs", x, y, series, marker=(threshold, "threshold"))


def worst_pairs(
    scored: ScoredPairs, source: PhotoSource, threshold: float
) -> tuple[list[GalleryPair], list[GalleryPair]]:
    """The different pairs that look most alike and the same pairs that look least alike, worst first.

    Args:
        scored: measured pairs.
        source: gives the crops once more.
        threshold: squared distance below which a pair is called the same.
    """
    galleries = []
    for same, order in ((False, scored.distances), (True, -scored.distances)):
        places = np.flatnonzero(scored.same == same)
        places = places[np.argsort(order[places], kind="stable")[:_GALLERY_PAIRS]]
        gallery = []
        for place in places.tolist():
            pair, distance = scored.pairs[place], float(scored.distances[place])
            gallery.append(
                GalleryPair(
                    left=str(pair.left),
                    right=str(pair.right),
                    left_image=_thumbnail(source, pair.left),
                    right_image=_thumbnail(source, pair.right),
                    score=cosine(distance),
                    is_error=(distance < threshold) != pair.same,
                )
            )
        galleries.append(gallery)
    return galleries[0], galleries[1]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """A run's `metrics.jsonl`, records in order; empty without the file. A line that a kill cut short is left out."""
    return [record for record in read_lines(path) if isinstance(record.get("step"), int)]


def training_curves(records: Sequence[Mapping[str, Any]]) -> list[Curve]:
    """A chart for each known metric that was recorded at least twice; long runs are averaged into windows."""
    curves = []
    for key, unit, title in _CURVES:
        points = [
            (float(record["step"]), float(record[key]))
            for record in records
            if isinstance(record.get(key), int | float) and np.isfinite(record[key])
        ]
        if len(points) < 2:
            continue
        windows = np.array_split(np.array(points), min(len(points), _CURVE_POINTS))
        steps, values = (np.array([window[:, column].mean() for window in windows]) for column in (0, 1))
        x = linear_axis(steps.tolist(), "step")
        x = Axis(x.low, float(steps.max()), [tick for tick in x.ticks if tick[0] <= steps.max()], "step")
        y = linear_axis(values.tolist(), unit, from_zero=True)
        svg = chart(title, x, y, [Series("plain", steps.tolist(), values.tolist())])
        curves.append(Curve(title=title, svg=svg, last=number(values[-1])))
    return curves


def _thumbnail(source: PhotoSource, photo: Photo) -> str:
    crop = source.load(photo)
    if isinstance(crop, Rejected):  # its embedding came from a file
        crop = np.full((1, 1, 3), 128, np.uint8)
    return _data_address(crop)


def _data_address(crop: Crop) -> str:
    done, encoded = cv2.imencode(".jpg", cv2.cvtColor(crop, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85])
    assert done, "the JPEG encoder refused an 8-bit RGB image"
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode("ascii")


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested configuration as dotted keys and values."""
    rows: list[tuple[str, str]] = []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            rows += _flatten(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", str(value)))
    return rows
