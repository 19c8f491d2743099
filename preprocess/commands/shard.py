"""`preprocess shard`."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from preprocess.commands.interrupt import goes_on_after_ctrl_c, interrupted_after_imports


def shard(
    source: Path = typer.Argument(..., metavar="SRC", help="Folder, list, .rec, .tar or .parquet: see below."),
    out: Path = typer.Argument(..., metavar="OUT", help="Folder for the data set; new, empty, or begun before."),
    layout: str = typer.Option("auto", help="Of SRC: auto, or folders, lfw, celeba, vggface2 or casia."),
    detector: str = typer.Option(
        "mtcnn", help="mtcnn (brings its weights), yunet (see preprocess weights) or scrfd (needs --weights)."
    ),
    weights: Path | None = typer.Option(None, help="The detector's weight file; its sha256 is recorded."),
    size: int = typer.Option(112, help="Width and height of the crops in pixels."),
    face: str = typer.Option("largest", help="Which face of several: largest, central or score."),
    min_score: float = typer.Option(0.7, help="Least detector score, 0 to 1."),
    min_face_px: int = typer.Option(20, help="Least shorter side of the face box, in pixels of the photo."),
    min_sharpness: float = typer.Option(0.0, help="Least sharpness of a crop (see preprocess stats); 0 takes any."),
    quality: int = typer.Option(95, help="JPEG quality of the crops, 1 to 100."),
    samples_per_shard: int = typer.Option(16384, help="Photos in a shard, at most."),
    val_identities: float = typer.Option(0.0, help="Share of the identities that goes to the split val."),
    seed: int = typer.Option(0, help="Of the shuffle and the split."),
    already_aligned: bool = typer.Option(
        False, "--already-aligned", help="The photos are square, aligned crops: resize them only."
    ),
    keep_jpegs: bool = typer.Option(
        False, "--keep-jpegs", help="With --already-aligned: store plain JPEGs of the right size as they came."
    ),
    extends: Path | None = typer.Option(
        None, help="An earlier version of the data set: its people keep labels and splits, its photos their keys."
    ),
    licence: str = typer.Option("", help="Licence of the photos, for dataset.json and the card."),
    max_rejects: float = typer.Option(0.5, help="Share of rejects beyond which the data set is left unfinished."),
    workers: int = typer.Option(0, help="Processes; 0 for one a core."),
    driver: str = typer.Option("local", help="local, ray (a cluster), or index (a pod of an Indexed Job)."),
    address: str | None = typer.Option(None, help="Of a Ray cluster, auto or HOST:PORT; none starts one here."),
    gpus_per_task: float = typer.Option(0.0, min=0.0, help="Share of a GPU that a Ray task asks for."),
    index: int | None = typer.Option(None, envvar="JOB_COMPLETION_INDEX", help="With --driver index: this pod's."),
    num_pods: int | None = typer.Option(None, help="With --driver index: how many pods there are."),
) -> None:
    """Find, align and crop faces, and write them as shards with a manifest.

    SRC is a folder of folders, IDENTITY/PHOTO.jpg, or a list (.csv, .parquet, .lst, .txt) with the columns path,
    identity and optionally bbox (x0 y0 x1 y1: which face is meant) and landmarks, used instead of detection: five x y
    pairs in px, of the eyes, the nose tip and the mouth's corners; of eyes and corners the one further left in the
    image first. Or it holds the photos' bytes: InsightFace's train.rec, WebDataset tars or Parquet with an image
    column, as a file or as the folder it stands in.

    Interrupted at any instant, the same command goes on; the bytes are those of an uninterrupted run.
    What cannot be used stays in the manifest with a reason and is shown in OUT/rejects.

    [bold]Examples[/bold]

        preprocess shard photos data --val-identities 0.1

        preprocess shard photos data --detector yunet --weights yunet.onnx --min-face-px 60

        preprocess shard crops.csv data --already-aligned --size 112

        preprocess shard faces_emore data --already-aligned --keep-jpegs

        preprocess shard CelebA data --layout celeba

        preprocess shard photos data --driver ray --address auto

        preprocess shard photos data --driver index --num-pods 16

        preprocess shard photos data-2 --extends data
    """
    import signal

    with interrupted_after_imports():
        from rich.console import Console

        from preprocess import run
        from preprocess.drivers import check_driver
        from preprocess.storage import one_line_errors
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))  # ends the workers too
    options = run.check_options(
        crop={
            "detector": "none" if already_aligned else detector,
            "size_px": size,
            "face": face,
            "min_score": min_score,
            "min_face_px": min_face_px,
            "min_sharpness": min_sharpness,
        },
        quality=quality,
        samples_per_shard=samples_per_shard,
        val_identities=val_identities,
        seed=seed,
        licence=licence,
        keep_jpegs=keep_jpegs,
    )
    with goes_on_after_ctrl_c(), one_line_errors(out):
        chosen = check_driver(driver, address, gpus_per_task, index, num_pods)
        run.shard(source, layout, out, options, weights, workers, max_rejects, chosen, extends, Console())
