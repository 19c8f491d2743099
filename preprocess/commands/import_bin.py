"""`preprocess import-bin`."""

from __future__ import annotations

from pathlib import Path

import typer


def import_bin(
    file: Path = typer.Argument(..., metavar="FILE", help="InsightFace's lfw.bin, cfp_fp.bin, agedb_30.bin, …"),
    out: Path = typer.Argument(..., metavar="OUT", help="Folder to make."),
) -> None:
    """Turn a verification set into a folder of photos and OUT/pairs.txt, to evaluate models on.

    The file is a pickle; nothing in it is ever called. Photos keep their bytes, pairs their order and folds.

    [bold]Examples[/bold]

        preprocess import-bin faces_emore/lfw.bin lfw

        preprocess shard lfw lfw-data --already-aligned --keep-jpegs

        python launch/evaluate.py --model run --data lfw-data --pairs lfw/pairs.txt
    """
    from rich.console import Console

    from preprocess.import_bin import write_pair_folder
    from preprocess.sources import refuse_url
    from preprocess.storage import one_line_errors

    console = Console()
    for path in (file, out):
        refuse_url(path)
    with one_line_errors(out):
        num_pairs, notes = write_pair_folder(file, out)
    for note in notes:
        console.print(note, highlight=False, markup=False)
    console.print(f"{out}: {2 * num_pairs:,} photos, {num_pairs:,} pairs", highlight=False, markup=False)
