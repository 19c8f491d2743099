"""All of `preprocess clean`: judge, write verdicts and page and, where asked, a version without what is to go."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table

from pipeline.atomic_write import write_atomically
from pipeline.config.errors import UserError
from pipeline.data.manifest import open_dataset
from preprocess.clean import find
from preprocess.clean.page import Source, render_page
from preprocess.clean.pixels import Crops, SamePicture
from preprocess.compact import write_version
from preprocess.storage import write_parquet

VERDICTS_FILE = "verdicts.parquet"
PAGE_FILE = "doubtful.html"


def clean(
    data: Path,
    report: Path,
    embeddings: Path | None,
    against: Path | None,
    threshold: int,
    apply: Path | None,
    console: Console,
) -> list[find.Verdict]:
    """Judge a data set's photos; it is only read.

    Args:
        data: a finished data set.
        report: the folder that verdicts and page are written to.
        embeddings: see `find.read_embeddings`.
        against: a test set, a finished data set too.
        threshold: bits by which perceptual hashes of near duplicates may differ.
        apply: a new folder for a version without the photos to drop and the withdrawn.
        console: where to show what was found.

    Raises:
        UserError: for everything the user can mend.
    """
    info = open_dataset(data).info
    if not 0 <= threshold <= 16:  # beyond, photos of different people are alike
        raise UserError("--bits", str(threshold), "0 to 16")
    if report.exists() and not report.is_dir():
        raise UserError(report, "is a file", "a folder for the report")
    if apply is not None and apply.exists():
        raise UserError(apply, "exists already", "a new folder")
    photos = find.read_photos(data)
    if not len(photos):
        raise UserError(data, "has no photo that is not withdrawn", "photos to judge")
    crops = Crops(data, photos)
    comparisons = [SamePicture(crops, crops)]
    verdicts = list(find.find_duplicates(photos, threshold, comparisons[0]))
    test = None if against is None else Source(against, find.read_photos(against))
    if test is not None:
        comparisons.append(SamePicture(crops, Crops(test.data, test.photos)))
        verdicts += find.find_overlap(photos, test.photos, threshold, comparisons[1])
    if num_unreadable := sum(comparison.num_unreadable for comparison in comparisons):
        text = f"pairs of near hashes of which a crop cannot be read: {num_unreadable:,} (preprocess verify names it)"
        console.print(text, highlight=False, style="yellow", soft_wrap=True)
    if embeddings is not None:
        chosen, vectors = find.read_embeddings(embeddings, photos)
        if len(chosen) < len(photos):
            text = f"{len(photos) - len(chosen):,} of {len(photos):,} photos have no embedding and are not judged by it"
            console.print(text, highlight=False)
        verdicts += find.find_wrong_labels(chosen, vectors)
    write_parquet(find.verdict_table(verdicts), report / VERDICTS_FILE, report)
    write_atomically(report / PAGE_FILE, render_page(Source(data, photos), test, verdicts, info.digest))
    console.print(_summary(verdicts))
    text = (
        f"{report / VERDICTS_FILE}: {len(verdicts):,} verdicts on {len(photos):,} photos; look at {report / PAGE_FILE}"
    )
    console.print(text, highlight=False, markup=False, soft_wrap=True)
    if apply is not None:
        _apply(data, photos, apply, verdicts, console)
    return verdicts


def _apply(data: Path, photos: pa.Table, out: Path, verdicts: list[find.Verdict], console: Console) -> None:
    keys = pa.array(sorted({verdict.key for verdict in verdicts if verdict.verdict == find.DROP}), pa.string())
    dropped = photos.filter(pc.is_in(photos["key"], keys))["sample_id"].to_pylist()
    info, num_withdrawn = write_version(data, out, dropped, "writing", console)
    text = (
        f"{out}: {info.num_samples:,} photos, without {len(dropped):,} to drop and {num_withdrawn:,} withdrawn samples"
    )
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _summary(verdicts: list[find.Verdict]) -> Table:
    table = Table(title="verdicts")
    for name in ("reason", "verdict"):
        table.add_column(name)
    table.add_column("photos", justify="right")
    for reason, verdict, count in find.count_verdicts(verdicts):
        table.add_row(reason, verdict, f"{count:,}")
    return table
