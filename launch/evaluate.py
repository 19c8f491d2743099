"""Measure a face model on pairs of photos.

`--model` is a training run or a checkpoint of it, an ONNX file, a Python
callable `module:function`, or a file of embeddings (Parquet or npz).
`--data` is a data set made by `preprocess shard`, or a folder of photos
`Name/Name_0001.jpg` not yet aligned, which then go through the detector and the
aligner that the training photos went through, or a verification set of
InsightFace's (`lfw.bin`), which has aligned photos and pairs, or a public test
set in its own files: CFP, AgeDB-30, CALFW, CPLFW, RFW, IJB-B and IJB-C. Without
`--pairs`, pairs are drawn from the people whom the data set holds out. Writes
`evaluation.json`, `report.html` and, when drawn, `pairs.txt`.

    python launch/evaluate.py --model RUN --data build/data
    python launch/evaluate.py --model RUN --data build/data --identify
    python launch/evaluate.py --model RUN --data DATA --pairs pairs.txt
    python launch/evaluate.py --model RUN --data PHOTOS --pairs pairs.txt
    python launch/evaluate.py --model RUN --data faces_emore/lfw.bin
    python launch/evaluate.py --model RUN --data cfp-dataset --protocol cfp-ff
    python launch/evaluate.py --model model.onnx --data faces_emore/lfw.bin
"""

from __future__ import annotations

import shlex
import sys
import tempfile
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.config.errors import UserError, run_command
from pipeline.evaluate.template_weights import TemplateWeights

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
    pairs: Annotated[Path | None, typer.Option(help="pair list: LFW's pairs.txt, or a .csv with groups")] = None,
    protocol: Annotated[
        str | None, typer.Option(help="the public test set that `--data` is; default: by its files")
    ] = None,
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
    cluster: Annotated[bool, typer.Option("--cluster", help="cluster the photos of the split's people, too")] = False,
    robustness: Annotated[bool, typer.Option("--robustness", help="verify degraded photos, too")] = False,
    quality: Annotated[bool, typer.Option("--quality", help="see whether photo quality predicts errors, too")] = False,
    map_people: Annotated[
        int | None, typer.Option("--map", min=2, max=60, help="draw a map of the photos of this many people, too")
    ] = None,
    distractors: Annotated[
        Path | None, typer.Option(help="with --identify: search among these strangers, too; a data set or a folder")
    ] = None,
    template_weights: Annotated[
        TemplateWeights, typer.Option(help="IJB: weigh photos by norm (N1), by detector score (D1)")
    ] = TemplateWeights.norm_score,
) -> None:
    """Embed, measure, report."""
    from rich.console import Console

    from pipeline.evaluate import report, result
    from pipeline.evaluate.console import embedding_progress, print_summary
    from pipeline.evaluate.pairs import write_pairs
    from pipeline.evaluate.run import coverage_notes, environment
    from pipeline.evaluate.scores import write_scores
    from pipeline.evaluate.sections import Asked
    from pipeline.inputs.distractors import open_distractors
    from pipeline.inputs.measure import Wanted, measure_test_set, refuse_unfit
    from pipeline.inputs.models import open_model
    from pipeline.inputs.test_sets import Request, open_test_set

    wanted = Wanted(
        batch=batch,
        flip=flip,
        identifies=identify,
        has_distractors=distractors is not None,
        sections=Asked(robustness, quality, map_people, cluster),
        template_weights=template_weights,
        carried=None if threshold_from is None else result.read_best_threshold(threshold_from),
    )
    recogniser = open_model(
        model, _choose_device(device), None if model_weights is None else model_weights.value, takes
    )
    request = Request(pairs, split, detector, weights, protocol, distractors)
    tests = open_test_set(data, recogniser, request)
    refuse_unfit(wanted, recogniser, tests, data)
    strangers = None
    if distractors is not None:
        strangers = open_distractors(recogniser, request, {photo.identity for photo in tests.split_photos})
        tests.notes += strangers.notes
    folder = _make_output(output or (recogniser.run_directory or Path()) / "evaluation")
    if tests.pairs_file is None:
        tests.pairs_file = folder / "pairs.txt"
        write_pairs(tests.pairs_file, tests.pairs)

    found = measure_test_set(recogniser, tests, strangers, wanted, data, embedding_progress)
    scored = found.scored
    pairs_sha256 = tests.digest_pairs()
    scores_file, scores_sha256 = folder / "scores.parquet", None
    if tests.templates is None:
        scores_sha256 = write_scores(
            scores_file, scored.pairs, scored.distances, pairs_sha256, has_identities=tests.knows_people
        )
    else:  # models are compared on pairs of photos; an earlier evaluation's file would be taken for this one's
        scores_file.unlink(missing_ok=True)
    evaluation = result.Evaluation(
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        command=shlex.join(["python", *sys.argv]),
        embedding_s=found.embedding_s,
        notes=coverage_notes(scored, tests.pairs) + recogniser.notes + tests.notes,
        verification=found.verification,
        scores_sha256=scores_sha256,
        identification=found.identification,
        **dict(found.sections),
        model=recogniser.description,
        speed=found.speed,
        data=result.Data(
            path=str(data),
            kind=tests.kind,
            protocol=tests.protocol,
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
    galleries = report.worst_pairs(scored, tests.source, found.verification.best_threshold.squared_distance)
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
