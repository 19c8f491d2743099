"""The evaluation's sections on the terminal: a table for each that was asked for."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from pipeline.evaluate.result import Evaluation
from pipeline.evaluate.result_sections import (
    Clusters,
    Fairness,
    GroupDisparity,
    PeopleMap,
    Quality,
    Robustness,
    RobustnessPoint,
)


def section_tables(evaluation: Evaluation) -> list[Table]:
    """In the order of the report."""
    tables = []
    if evaluation.fairness is not None:
        tables.append(_fairness(evaluation.fairness))
    if evaluation.robustness is not None:
        tables.append(_robustness(evaluation.robustness))
    if evaluation.quality is not None:
        tables.append(_quality(evaluation.quality))
    if evaluation.people_map is not None:
        tables.append(_people_map(evaluation.people_map))
    if evaluation.clusters is not None:
        tables.append(_clusters(evaluation.clusters))
    return tables


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", show_header=bool(columns))
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    return table


def _robustness(section: Robustness) -> Table:
    title = f"Robustness, {section.num_probes:,} second photos degraded"
    table = _table(title, "degradation", "accuracy", "at the clean threshold", "TAR at FAR 1e-3")

    def add(name: str, point: RobustnessPoint) -> None:
        rate = "too few pairs" if point.tar_at_far_1e_3 is None else f"{point.tar_at_far_1e_3:.4f}"
        table.add_row(name, f"{point.accuracy:.4f}", f"{point.accuracy_at_clean_threshold:.4f}", rate)

    add("none", section.clean)
    for curve in section.curves:
        for point in curve.points:
            add(f"{curve.kind.replace('_', ' ')} {point.strength:g}", point)
    return table


def _quality(section: Quality) -> Table:
    title = f"Quality, {section.num_same:,} same pairs: area up to {section.up_to:.0%} rejected"
    table = _table(title)
    table.add_column("measure")
    table.add_column("area", justify="right")
    for name, figures in section.measures.items():
        table.add_row(name.replace("_", "-"), f"{figures.area:.5f}")
    table.add_row("says nothing", f"{section.area_of_chance:.5f}")
    table.add_row("perfect", f"{section.least_area:.5f}")
    for name, reason in section.left_out.items():
        table.add_row(name.replace("_", "-"), f"left out: {reason}")
    return table


def _people_map(section: PeopleMap) -> Table:
    table = _table(f"Map of {len(section.people):,} people, {len(section.person):,} photos")
    table.add_column("method")
    for one in section.maps:
        table.add_row(one.method)
    return table


def _clusters(section: Clusters) -> Table:
    title = f"Clusters of {section.num_photos:,} photos of {section.num_people:,} people"
    table = _table(title, "method", "cosine from", "clusters", "pairwise F", "B-cubed F", "NMI")
    for one in section.methods:
        threshold = "" if one.threshold is None else f"{one.threshold:.2f}"
        figures = (f"{value:.4f}" for value in (one.pairwise.f, one.bcubed.f, one.nmi))
        table.add_row(one.method, threshold, f"{one.num_clusters:,}", *figures)
    if section.num_left_out:
        table.caption = f"{section.num_left_out:,} photos are in neither half"
    return table


def _fairness(section: Fairness) -> Table:
    table = _table("Groups", "column", "rate", "worst", "", "best", "", "ratio")

    def add(name: str, measure: str, found: GroupDisparity | None) -> None:
        if found is None:
            table.add_row(escape(name), measure, "one group at most has it")
            return
        ratio = "best is 0" if found.ratio is None else f"{found.ratio:.2f}"
        ends = ((found.worst, found.worst_rate), (found.best, found.best_rate))
        cells = [cell for groups, rate in ends for cell in (escape(_pair(groups)), f"{rate:.4f}")]
        table.add_row(escape(name), measure, *cells, ratio)

    for grouping in section.groupings:
        add(grouping.name, "FMR", grouping.fmr)
        add(grouping.name, "FNMR", grouping.fnmr)
    return table


def _pair(groups: tuple[str, str]) -> str:
    return groups[0] if groups[0] == groups[1] else " / ".join(groups)
