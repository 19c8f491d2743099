"""`preprocess stats --html`: the same figures as pictures, with sheets of sample crops."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from markupsafe import Markup

from preprocess.pages import crop_address, crop_bytes, render
from preprocess.stats import MEASURES, Contents, face_px

_NUM_BINS = 40
_SHEET = 48
_BRIGHTNESS_SAMPLE = 2000
_WIDTH, _HEIGHT = 320, 130
_LEFT, _BOTTOM = 6, 18

_TEMPLATE = """
<h1>{{ data }}</h1>
<p class="soft">digest <code>{{ digest }}</code>, crops of {{ crop_px }} px</p>
<div class="scroll"><table>
<tr><th></th>{% for split in splits %}<th class="number">{{ split }}</th>{% endfor %}</tr>
{% for name, values in counts %}
<tr><td>{{ name }}</td>{% for value in values %}<td class="number">{{ value }}</td>{% endfor %}</tr>
{% endfor %}
</table></div>
{% if rejects %}
<h2>Rejects</h2>
<table>{% for reason, count in rejects %}
<tr><td>{{ reason }}</td><td class="number">{{ "{:,}".format(count) }}</td></tr>
{% endfor %}</table>
{% endif %}
<h2>Distributions</h2>
<p class="soft">What lies beyond the 0.5 and 99.5 percentiles counts in the outer bars.</p>
<div class="grid">
{% for chart in charts %}
<figure class="card">{{ chart.svg }}<figcaption><b>{{ chart.title }}</b><br>median {{ chart.median }},
{{ chart.low }} to {{ chart.high }}{% if chart.note %}; {{ chart.note }}{% endif %}</figcaption></figure>
{% endfor %}
</div>
{% for sheet in sheets %}
<h2>{{ sheet.title }}</h2>
{% if sheet.num_unreadable %}
<p class="warn">{{ sheet.num_unreadable }} more cannot be read; <code>preprocess verify</code> names them.</p>
{% endif %}
<div class="sheet">
{% for crop in sheet.crops %}
<img src="{{ crop.image }}" alt="{{ crop.identity }}" title="{{ crop.identity }}: {{ crop.source }}">
{% endfor %}
</div>
{% endfor %}
"""


@dataclass(frozen=True)
class _Chart:
    title: str
    svg: Markup
    median: str
    low: str
    high: str
    note: str = ""


def render_stats(data: Path, contents: Contents, counts: Sequence[tuple[str, Sequence[str]]]) -> bytes:
    """The page, with all its pictures.

    Args:
        data: the data set.
        contents: of its manifests, without what is withdrawn.
        counts: rows of the table: a name and a figure a split.
    """
    kept = pa.concat_tables(contents.kept.values()).combine_chunks()
    rejects: Counter[str] = Counter(
        reason for table in contents.tables.values() for reason in table["reject_reason"].to_pylist() if reason
    )
    photos = np.concatenate(
        [np.unique(table["label"].to_numpy(), return_counts=True)[1] for table in contents.kept.values()]
    )
    charts = [_chart("photos an identity", photos.astype(np.float64))] if len(photos) else []
    for name, title in MEASURES.items():
        values = face_px(kept) if name == "face_px" else kept[name].drop_null().to_numpy()
        if len(values):
            charts.append(_chart(title, values.astype(np.float64)))
    brightness, num_unreadable = _brightness(data, kept)
    if len(brightness):
        note = f"of {len(brightness):,} crops" + (f", {num_unreadable:,} more cannot be read" if num_unreadable else "")
        charts.append(_chart("brightness of crops, mean grey", brightness, note))
    return render(
        _TEMPLATE,
        f"Statistics of {data.name}",
        data=data.name,
        digest=contents.info.digest[:16],
        crop_px=contents.info.crop.size_px,
        splits=list(contents.info.splits),
        counts=counts,
        rejects=rejects.most_common(),
        charts=charts,
        sheets=_sheets(data, kept),
    )


def histogram(values: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], bool]:
    """Counts in bins, the bins' edges, and whether there is a bin for each whole number.

    What lies beyond the 0.5 and 99.5 percentiles counts in the outer bins.
    """
    low, high = np.percentile(values, (0.5, 99.5))
    if high <= low:
        low, high = low - 0.5, high + 0.5
    num_bins = _NUM_BINS
    is_whole = bool((values == np.round(values)).all()) and high - low < _NUM_BINS
    if is_whole:
        low, high = np.floor(low) - 0.5, np.ceil(high) + 0.5
        num_bins = int(high - low)
    counts, edges = np.histogram(np.clip(values, low, high), num_bins, (low, high))
    return counts, edges, is_whole


def _chart(title: str, values: npt.NDArray[np.float64], note: str = "") -> _Chart:
    counts, edges, is_whole = histogram(values)
    inner, base = _WIDTH - 2 * _LEFT, _HEIGHT - _BOTTOM
    width = inner / len(counts)
    bars = "".join(
        f'<rect class="bar" x="{_LEFT + number * width:.1f}" y="{base - height:.1f}" width="{max(width - 1, 0.5):.1f}" '
        f'height="{height:.1f}"/>'
        for number, height in enumerate((counts / counts.max() * (base - 6)).tolist())
        if height
    )
    half = 0.5 if is_whole else 0.0  # the outermost whole numbers stand in the middle of their bins
    places = [(_LEFT, "start", edges[0] + half), (_WIDTH / 2, "middle", (edges[0] + edges[-1]) / 2)]
    places.append((_WIDTH - _LEFT, "end", edges[-1] - half))
    ticks = "".join(
        f'<text x="{x}" y="{_HEIGHT - 4}" text-anchor="{side}">{_short(at)}</text>' for x, side, at in places
    )
    line = f'<line x1="{_LEFT}" x2="{_WIDTH - _LEFT}" y1="{base}" y2="{base}"/>'
    head = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{Markup.escape(title)}">'
    median, low, high = (_short(float(value)) for value in (np.median(values), values.min(), values.max()))
    return _Chart(title, Markup(f"{head}{bars}{line}{ticks}</svg>"), median, low, high, note)


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 or value == round(value) else f"{value:.3g}"


def _brightness(data: Path, kept: pa.Table) -> tuple[npt.NDArray[np.float64], int]:
    """Mean grey level of evenly spread crops, and how many of them cannot be read."""
    rows = np.linspace(0, len(kept) - 1, min(len(kept), _BRIGHTNESS_SAMPLE)).astype(np.int64)
    means = []
    for photo in kept.take(pa.array(rows)).to_pylist():
        content = crop_bytes(data, photo)
        grey = None if content is None else cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE)
        if grey is not None:
            means.append(float(grey.mean()))
    return np.array(means), len(rows) - len(means)


def _sheets(data: Path, kept: pa.Table) -> list[dict[str, object]]:
    """Crops spread evenly over the data set, and those at the ends of what was measured."""
    if not len(kept):
        return []
    spread = np.linspace(0, len(kept) - 1, min(len(kept), _SHEET)).astype(np.int64)
    chosen = [("Samples", spread)]
    for name, title, rising in (
        ("sharpness", "Least sharp", True),
        ("det_score", "Lowest detector score", True),
        ("yaw", "Most turned", False),
    ):
        column = kept[name].to_numpy(zero_copy_only=False).astype(np.float64)
        column = np.abs(column) if name == "yaw" else column
        known = np.flatnonzero(np.isfinite(column))
        if len(known):
            order = known[np.argsort(column[known] * (1 if rising else -1), kind="stable")]
            chosen.append((title, order[: _SHEET // 2]))
    sheets: list[dict[str, object]] = []
    for title, rows in chosen:
        crops = [
            {"image": image, "identity": photo["identity"], "source": photo["source"]}
            for photo in kept.take(pa.array(rows)).to_pylist()
            if (image := crop_address(data, photo))
        ]
        sheets.append({"title": title, "crops": crops, "num_unreadable": len(rows) - len(crops)})
    return sheets
