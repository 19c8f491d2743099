"""Figures of several benchmarks as a Markdown table and as a plot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from figures import Figure, spread

HEADER = ("what", "ours", "peer", "ratio", "limit", "share of limit", "goal")
EXPLANATION = (
    "Medians, with minimum and maximum in brackets. Ratio: how many times better ours is than the peer; above 1, ours "
    "is better. Share of limit: how much ours reaches of what the machine allows at most. Both are medians over turns."
)
PEER_COLOUR, LIMIT_COLOUR = "#2a6f97", "#bc6c25"


def table(
    measured: Mapping[str, Sequence[Figure]],
    machines: Mapping[str, Mapping[str, Any]],
    source: str,
    failures: Mapping[str, str],
) -> str:
    """A table a benchmark, with its machine's load average when it was written."""
    parts = [f"# Figures of {source}", EXPLANATION]
    for name, found in measured.items():
        machine = machines[name]
        beside = f"{machine['platform']}, {machine['cores']} cores, load average {machine['load']:.1f} at its end"
        lines = [_row(HEADER), _row(["---"] * len(HEADER))]
        lines += [_row(cells) for one in found for cells in rows(one)]
        parts += [f"## {name}", beside, "\n".join(lines)]
    if failures:
        parts += ["## Not measured", "\n".join(f"- {name}: {failure}" for name, failure in failures.items())]
    return "\n\n".join(parts) + "\n"


def rows(figure: Figure) -> list[tuple[str, ...]]:
    """Cells in the order of `HEADER`: a row a peer; what does not belong to the peer stands in the first."""
    limit = share = ""
    if figure.limit is not None:
        name, values = figure.limit
        limit, share = f"{name}: {_spread(values, figure.unit)}", f"{figure.advantage(values):.0%}"
    peers = [
        (f"{name}: {_spread(values, figure.unit)}", f"{figure.advantage(values):.2f}")
        for name, values in figure.peers.items()
    ] or [("", "")]
    first = (figure.what, _spread(figure.ours, figure.unit), *peers[0], limit, share, figure.goal)
    return [first, *(("", "", *peer, "", "", "") for peer in peers[1:])]


def plot(measured: Mapping[str, Sequence[Figure]], path: Path) -> bool:
    """Bars of every ratio to a peer and every share of a limit, on a logarithmic axis; false where there is none."""
    from matplotlib.figure import Figure as Page
    from matplotlib.patches import Patch

    bars = [bar for found in measured.values() for one in found for bar in _bars(one)]
    if not bars:
        return False
    page = Page(figsize=(11, 1.2 + 0.27 * len(bars)), layout="constrained")
    axes = page.add_subplot()
    for place, (_, beside, ratio, colour) in enumerate(bars):
        # from 1, the line of equals, to the ratio
        axes.barh(place, ratio - 1, left=1, color=colour, height=0.6)
        axes.annotate(
            f"{ratio:.0%}" if colour == LIMIT_COLOUR else f"{ratio:.{2 if ratio < 10 else 1 if ratio < 100 else 0}f}",
            (ratio, place),
            (4 if ratio >= 1 else -4, 0),
            textcoords="offset points",
            ha="left" if ratio >= 1 else "right",
            va="center",
            fontsize=8,
        )
        axes.annotate(
            beside,
            (1, place),
            (6, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=colour,
            annotation_clip=False,
        )
    # a quantity stands once, at the first of its bars
    names = [what if number == 0 or bars[number - 1][0] != what else "" for number, (what, *_) in enumerate(bars)]
    axes.set_yticks(range(len(bars)), names, fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.set_xscale("log")
    ratios = [ratio for _, _, ratio, _ in bars]
    axes.set_xlim(min(0.5, min(ratios) / 2.5), max(2.0, max(ratios) * 2.5))  # with room for numbers
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel("times as good as the peer, or share of the limit (log scale)")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.legend(
        handles=[Patch(color=PEER_COLOUR, label="against a peer"), Patch(color=LIMIT_COLOUR, label="against a limit")],
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=2,
        frameon=False,
        fontsize=8,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    page.savefig(path, dpi=110)
    return True


def _bars(figure: Figure) -> list[tuple[str, str, float, str]]:
    """What, beside what, the ratio, the colour; ratios that no logarithm has are left to the table."""
    beside = [(name, values, PEER_COLOUR) for name, values in figure.peers.items()]
    if figure.limit is not None:
        beside.append((*figure.limit, LIMIT_COLOUR))
    found = [(figure.what, name, figure.advantage(values), colour) for name, values, colour in beside]
    return [bar for bar in found if bar[2] > 0 and math.isfinite(bar[2])]


def _spread(values: Sequence[float], unit: str) -> str:
    return " ".join(spread(values, unit).split())


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
