"""Measure a face model on pairs of photos.

`--model` is a training run or a checkpoint of it, an ONNX file, a Python
callable `module:function`, or a file of embeddings (Parquet or npz).
`--data` is a data set made by `preprocess shard`, or a folder of photos
`Name/Name_0001.jpg` not yet aligned, which then go through the detector and the
aligner that the training photos went through, or a verification set of
InsightFace's (`lfw.bin`), which has aligned photos and pairs. Without `--pairs`,
pairs are drawn from the people whom the data set holds out. Writes
`evaluation.json`, `report.html` and, when drawn, `pairs.txt`.

    python launch/evaluate.py --model RUN --data build/data
    python launch/evaluate.py --model RUN --data build/data --identify
    python launch/evaluate.py --model RUN --data DATA --pairs pairs.txt
    python launch/evaluate.py --model RUN --data PHOTOS --pairs pairs.txt
    python launch/evaluate.py --model RUN --data faces_emore/lfw.bin
    python launch/evaluate.py --model model.onnx --data faces_emore/lfw.bin
"""

from __future__ import annotations

import hashlib
import shlex
import sys
import tempfile
import time
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from pipeline.config.errors import UserError, run_command

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")


class ModelWeights(StrEnum):
    """Which of a checkpoint's weights to measure."""

    ema = "ema"
    raw = "raw"


class Device(StrEnum):
    """Where the model runs."""

    cpu = "cpu"
    cuda = "cuda"


@app.command(help=__doc__)
def main(
    model: Annotated[str, typer.Option(help="a run, a checkpoint, FILE.onnx, module:function, or embeddings")],
    data: Annotated[Path, typer.Option(help="a data set, a folder of folders of photos, or a .bin file")],
    pairs: Annotated[Path | None, typer.Option(help="pair list in the format of LFW's pairs.txt")] = None,
    takes: Annotated[
        str | None,
        typer.Option("--input", help='what a foreign model takes: "size=112x96 colour=BGR mean=127.5 std=128"'),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="default: `evaluation` in the run directory, else here")] = None,
    split: Annotated[str | None, typer.Option(help="draw pairs from this split; default: val")] = None,
    device: Annotated[Device | None, typer.Option(help="default: cuda where there is one")] = None,
    batch: Annotated[int, typer.Option(min=1, help="photos a batch")] = 256,
    detector: Annotated[str | None, typer.Option(help="mtcnn, yunet or none; default: the training data's")] = None,
    weights: Annotated[Path | None, typer.Option(help="the detector's weight file, for yunet")] = None,
    model_weights: Annotated[
        ModelWeights | None, typer.Option(help="the weights' moving average or the weights; default: ema where it is")
    ] = None,
    threshold_from: Annotated[
        Path | None, typer.Option(help="judge by the best threshold of another set, too: its evaluation.json")
    ] = None,
    flip: Annotated[bool, typer.Option("--flip/--no-flip", help="add the mirror image's embedding")] = True,
    identify: Annotated[
        bool, typer.Option("--identify", help="search each photo among the split's people, too")
    ] = False,
) -> None:
    """Embed, measure, report."""
    from rich.console import Console

    from pipeline.evaluate import report, result
    from pipeline.evaluate.console import embedding_progress, print_summary
    from pipeline.evaluate.embed import extract_embeddings
    from pipeline.evaluate.identify import identify as identify_people
    from pipeline.evaluate.pairs import write_pairs
    from pipeline.evaluate.run import add_intervals, coverage_notes, environment, judge, measure, score_embeddings
    from pipeline.evaluate.scores import write_scores
    from pipeline.inputs.models import open_model
    from pipeline.inputs.test_sets import Request, open_test_set

    if identify and pairs is not None:
        raise UserError("--identify", "given with --pairs", "a data set whose split to search in", "leave one out")
    carried = None if threshold_from is None else result.read_best_threshold(threshold_from)
    recogniser = open_model(
        model, _choose_device(device), None if model_weights is None else model_weights.value, takes
    )
    flip = flip and recogniser.embedder.stored is None
    tests = open_test_set(data, recogniser, Request(pairs, split, detector, weights))
    if identify and tests.split is None:
        raise UserError("--identify", f"given with {data.name}", "a data set", "leave --identify out")
    folder = _make_output(output or (recogniser.run_directory or Path()) / "evaluation")
    if tests.pairs_file is None:
        tests.pairs_file = folder / "pairs.txt"
        write_pairs(tests.pairs_file, tests.pairs)

    started = time.perf_counter()
    photos = tests.split_photos() if identify else tests.pairs.photos()
    with embedding_progress(len(photos)) as advance:
        found = extract_embeddings(recogniser.embedder, tests.source, photos, batch=batch, flip=flip, advance=advance)
    embedding_s = time.perf_counter() - started
    scored = score_embeddings(found, tests.pairs, len(tests.pairs.photos()))
    figures = add_intervals(measure(scored, flip), scored, by_identity=tests.knows_people)
    if carried is not None:
        figures = figures.model_copy(update={"carried_threshold": judge(scored, carried)})
    pairs_sha256 = hashlib.sha256(tests.pairs_file.read_bytes()).hexdigest()
    evaluation = result.Evaluation(
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        command=shlex.join(["python", *sys.argv]),
        embedding_s=embedding_s,
        notes=coverage_notes(scored, tests.pairs) + recogniser.notes + tests.notes,
        verification=figures,
        identification=identify_people(found, data) if identify else None,
        model=recogniser.description,
        speed=result.Speed(embedding_ms=median(found.batch_ms), num_photos=len(found.photos), batch=batch)
        if found.batch_ms
        else None,
        data=result.Data(
            path=str(data),
            kind=tests.kind,
            digest=None if tests.dataset is None else tests.dataset.info.digest,
            split=tests.split,
            pairs=str(tests.pairs_file),
            pairs_sha256=pairs_sha256,
            detector=tests.detector,
            num_photos=scored.num_photos,
            num_identities=len({photo.identity for pair in scored.pairs for photo in (pair.left, pair.right)})
            if tests.knows_people
            else None,
        ),
        environment=environment(recogniser.embedder.device),
    )
    write_scores(
        folder / "scores.parquet", scored.pairs, scored.distances, pairs_sha256, has_identities=tests.knows_people
    )
    galleries = report.worst_pairs(scored, tests.source, figures.best_threshold.squared_distance)
    curves = []
    if recogniser.run_directory is not None:
        curves = report.training_curves(report.read_metrics(recogniser.run_directory / "metrics.jsonl"))
    result.write_text(folder / "report.html", report.render_report(evaluation, *galleries, curves))
    result.write_json(folder / "evaluation.json", evaluation)
    print_summary(evaluation, folder / "report.html", Console())


def _choose_device(device: Device | None) -> Any:
    import torch

    if device is Device.cuda and not torch.cuda.is_available():
        raise UserError("--device", "cuda, but this machine offers none", "a CUDA device", "--device cpu")
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _make_output(folder: Path) -> Path:
    """Make the folder and try it out: better now than when all photos are embedded."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(folder, f"not a folder to write to ({error.strerror})", remedy="--output FOLDER") from None
    return folder


if __name__ == "__main__":
    run_command(app)
