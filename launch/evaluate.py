"""Measure a trained model on pairs of photos.

`--data` is a data set made by `preprocess shard`, or a folder of photos
`Name/Name_0001.jpg` not yet aligned, which then go through the detector and the
aligner that the training photos went through, or a verification set of
InsightFace's (`lfw.bin`), which has aligned photos and pairs. Without `--pairs`,
pairs are drawn from the people whom the data set holds out. Writes
`evaluation.json`, `report.html` and, when drawn, `pairs.txt`.

    python launch/evaluate.py --checkpoint RUN --data build/data
    python launch/evaluate.py --checkpoint RUN --data build/data --identify
    python launch/evaluate.py --checkpoint RUN --data DATA --pairs pairs.txt
    python launch/evaluate.py --checkpoint RUN --data PHOTOS --pairs pairs.txt
    python launch/evaluate.py --checkpoint RUN --data faces_emore/lfw.bin
"""

from __future__ import annotations

import hashlib
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.config.errors import UserError, run_command

if TYPE_CHECKING:
    from pipeline.checkpoint import LoadedBackbone
    from pipeline.data.dataset_format import DatasetInfo
    from pipeline.data.manifest import Dataset
    from pipeline.evaluate.pairs import PairList, Photo
    from pipeline.evaluate.photos import Crop, PhotoSource, Rejected
    from pipeline.evaluate.result import Model

PAIR_BIN_SUFFIX = ".bin"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")


class ModelWeights(StrEnum):
    """Which of a checkpoint's weights to measure."""

    ema = "ema"
    raw = "raw"


class Device(StrEnum):
    """Where the model runs."""

    cpu = "cpu"
    cuda = "cuda"


@dataclass
class TestSet:
    """The opened photos and what the result records about them."""

    source: PhotoSource
    dataset: Dataset | None
    detector: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    pairs: PairList | None = None
    """Of a verification set, which brings its own."""


@app.command(help=__doc__)
def main(
    checkpoint: Annotated[Path, typer.Option(help="a run directory or one checkpoint of it, `step-N`")],
    data: Annotated[Path, typer.Option(help="a data set, a folder of folders of photos, or a .bin file")],
    pairs: Annotated[Path | None, typer.Option(help="pair list in the format of LFW's pairs.txt")] = None,
    output: Annotated[Path | None, typer.Option(help="default: `evaluation` in the run directory")] = None,
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

    from pipeline.checkpoint import load_backbone
    from pipeline.evaluate import report, result
    from pipeline.evaluate.console import embedding_progress, print_summary
    from pipeline.evaluate.embed import Embedder, extract_embeddings
    from pipeline.evaluate.identify import identify as identify_people
    from pipeline.evaluate.pairs import write_pairs
    from pipeline.evaluate.run import add_intervals, coverage_notes, environment, judge, measure, score_embeddings

    if pairs is not None and split is not None:
        raise UserError("--split", "given with --pairs", "one of them: the split is where pairs are drawn from")
    if identify and pairs is not None:
        raise UserError("--identify", "given with --pairs", "a data set whose split to search in", "leave one out")
    carried = None if threshold_from is None else result.read_best_threshold(threshold_from)
    torch_device = _choose_device(device)
    loaded = load_backbone(checkpoint, torch_device, None if model_weights is None else model_weights.value)
    run_directory = _run_directory(checkpoint)
    tests = (
        _open_pair_bin(data, loaded, pairs=pairs, split=split, detector=detector, weights=weights)
        if data.suffix == PAIR_BIN_SUFFIX and data.is_file()
        else _open_data(data, loaded, detector, weights, pairs is None)
    )
    pair_list = _choose_pairs(tests, data, pairs, split or "val")
    tests.notes += _numbering_notes(tests, pair_list) + _overlap_notes(tests, loaded, pair_list)
    folder = _make_output(output or run_directory / "evaluation")
    is_drawn = pairs is None and tests.pairs is None
    if is_drawn:
        write_pairs(folder / "pairs.txt", pair_list)
    if identify and not is_drawn:
        raise UserError("--identify", f"given with {data.name}", "a data set", "leave --identify out")
    pairs_file = folder / "pairs.txt" if is_drawn else pairs or data

    embedder = Embedder(loaded.module, loaded.crop_px, torch_device, str(checkpoint))
    started = time.perf_counter()
    photos = _split_photos(tests, split or "val") if identify else pair_list.photos()
    with embedding_progress(len(photos)) as advance:
        found = extract_embeddings(embedder, tests.source, photos, batch=batch, flip=flip, advance=advance)
    embedding_s = time.perf_counter() - started
    scored = score_embeddings(found, pair_list, len(pair_list.photos()))
    figures = add_intervals(measure(scored, flip), scored, by_identity=tests.pairs is None)
    if carried is not None:
        figures = figures.model_copy(update={"carried_threshold": judge(scored, carried)})
    evaluation = result.Evaluation(
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        command=shlex.join(["python", *sys.argv]),
        embedding_s=embedding_s,
        notes=coverage_notes(scored, pair_list) + tests.notes,
        verification=figures,
        identification=identify_people(found, data) if identify else None,
        model=_describe(checkpoint, loaded),
        data=result.Data(
            path=str(data),
            kind="pair_bin" if tests.pairs else "photos" if tests.dataset is None else "dataset",
            digest=None if tests.dataset is None else tests.dataset.info.digest,
            split=(split or "val") if is_drawn else None,
            pairs=str(pairs_file),
            pairs_sha256=hashlib.sha256(pairs_file.read_bytes()).hexdigest(),
            detector=tests.detector,
            num_photos=scored.num_photos,
            num_identities=None
            if tests.pairs
            else len({photo.identity for pair in scored.pairs for photo in (pair.left, pair.right)}),
        ),
        environment=environment(torch_device),
    )
    galleries = report.worst_pairs(scored, tests.source, figures.best_threshold.squared_distance)
    curves = report.training_curves(report.read_metrics(run_directory / "metrics.jsonl"))
    result.write_text(folder / "report.html", report.render_report(evaluation, *galleries, curves))
    result.write_json(folder / "evaluation.json", evaluation)
    print_summary(evaluation, folder / "report.html", Console())


def _choose_device(device: Device | None) -> Any:
    import torch

    if device is Device.cuda and not torch.cuda.is_available():
        raise UserError("--device", "cuda, but this machine offers none", "a CUDA device", "--device cpu")
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _run_directory(checkpoint: Path) -> Path:
    """The run that a checkpoint belongs to: it holds `checkpoints/step-N`."""
    for path in (checkpoint, *checkpoint.absolute().parents[:2]):
        if (path / "checkpoints").is_dir():
            return path
    return checkpoint


def _make_output(folder: Path) -> Path:
    """Make the folder and try it out: better now than when all photos are embedded."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(folder, f"not a folder to write to ({error.strerror})", remedy="--output FOLDER") from None
    return folder


def _open_data(
    data: Path, loaded: LoadedBackbone, detector: str | None, weights: Path | None, draws_pairs: bool
) -> TestSet:
    from pipeline.config.location import RemotePath, parse_location
    from pipeline.data.dataset_format import DatasetInfo
    from pipeline.data.manifest import open_dataset
    from pipeline.evaluate.photos import DatasetPhotos, FolderPhotos, ListedPhoto
    from preprocess.sources import read_source

    trained = DatasetInfo.model_validate(loaded.dataset)
    # A directory with commits is a data set that is not finished yet: opening it says so.
    is_remote = isinstance(parse_location(data), RemotePath)
    if is_remote or (data / "dataset.json").is_file() or (data / "commits").is_dir():
        for option, value in (("--detector", detector), ("--weights", weights)):
            if value is not None:
                raise UserError(
                    option, "given with a data set", "photos that are not aligned yet", f"leave {option} out"
                )
        dataset = open_dataset(data)
        if dataset.info.crop.size_px != loaded.crop_px:
            raise UserError(
                data,
                f"crops of {dataset.info.crop.size_px} px",
                f"{loaded.crop_px} px, as the model was trained on",
                f"preprocess shard … --size {loaded.crop_px}",
            )
        photos = DatasetPhotos(dataset, sorted(dataset.info.splits))
        notes = _difference_notes(dataset.info, trained)
        return TestSet(photos, dataset, dataset.info.detector.model_dump(mode="json"), notes)
    if not data.is_dir():
        found = "not a directory" if data.exists() else "no such directory"
        raise UserError(data, found, "a data set, or a folder of folders of photos")
    if draws_pairs:
        raise UserError(
            data, "not a data set, and no --pairs", "a pair list", "--pairs FILE, or preprocess shard first"
        )
    crop, used, notes = _cropper(trained, loaded.crop_px, detector, weights)
    _, table, passed_over = read_source(data, "folders")
    listing = (
        ListedPhoto(*row) for row in zip(*(table[name].to_pylist() for name in ListedPhoto._fields), strict=True)
    )
    notes += [f"In the folder of photos, {sentence}." for sentence in passed_over]
    return TestSet(FolderPhotos(data, listing, crop), None, used, notes)


def _open_pair_bin(path: Path, loaded: LoadedBackbone, **given: object) -> TestSet:
    """A verification set; options in `given` that have a value are refused, for it brings aligned photos and pairs."""
    from pipeline.data.pair_bin import read_pair_bin
    from pipeline.evaluate.pair_set import PairSetPhotos, list_pairs
    from pipeline.evaluate.photos import Rejected
    from preprocess.crops import NO_DETECTOR, CropMaker, CropOptions, describe_detector

    for option, value in given.items():
        if value is not None:
            found = f"given with {path.name}, whose photos are aligned and paired"
            raise UserError(f"--{option}", found, remedy=f"leave --{option} out")
    pairs = read_pair_bin(path)
    maker = CropMaker(CropOptions(detector=NO_DETECTOR, size_px=loaded.crop_px))

    def crop(image: bytes) -> Crop | Rejected:
        made = maker.make(lambda: image)
        return Rejected(made.reject_reason) if made.crop is None else made.crop

    first = maker.make(lambda: pairs.images[0])
    notes = []
    if first.width not in (0, loaded.crop_px):
        notes.append(f"The photos of {path.name} ({first.width} px) were resized to the model's {loaded.crop_px} px.")
    used = describe_detector(maker.options, maker.weights_sha256).model_dump(mode="json")
    return TestSet(PairSetPhotos(pairs, crop), None, used, notes, list_pairs(pairs))


def _cropper(
    trained: DatasetInfo, crop_px: int, detector: str | None, weights: Path | None
) -> tuple[Callable[[Path], Crop | Rejected], dict[str, Any], list[str]]:
    """The function from a photo to a crop, what it uses, and how that differs from training."""
    from pipeline.evaluate.photos import Rejected
    from preprocess.crops import NO_DETECTOR, CropMaker, CropOptions, describe_detector

    if detector is None and trained.detector.name == NO_DETECTOR:
        raise UserError(
            "--detector",
            "missing, and the training photos came already aligned",
            "mtcnn, yunet, or none for aligned photos",
        )
    if detector is None:
        maker = CropMaker.from_dataset(trained, weights)
    else:
        options = {**trained.detector.options, "detector": detector, "size_px": crop_px}
        maker = CropMaker(CropOptions.model_validate(options), weights)
    info = describe_detector(maker.options, maker.weights_sha256)
    notes = []
    if (info.name, info.weights_sha256) != (trained.detector.name, trained.detector.weights_sha256):
        notes.append(f"Faces were found by {info.name}; the model was trained on those of {trained.detector.name}.")

    def crop(path: Path) -> Crop | Rejected:
        pixels, reason, _ = maker.crop_photo(path)
        return Rejected(reason) if pixels is None else pixels

    return crop, info.model_dump(mode="json"), notes


def _choose_pairs(tests: TestSet, data: Path, pairs: Path | None, split: str) -> PairList:
    from pipeline.evaluate.pairs import deal_into_folds, draw_pairs, read_pairs
    from pipeline.evaluate.photos import DatasetPhotos

    if tests.pairs is not None:
        return tests.pairs
    if pairs is None:
        assert tests.dataset is not None
        if split not in tests.dataset.info.splits:
            splits = ", ".join(sorted(tests.dataset.info.splits))
            raise UserError(
                data, f"no split {split!r} to draw pairs from; it has {splits}", "", "--split NAME, or --pairs FILE"
            )
        return draw_pairs(DatasetPhotos(tests.dataset, [split]).numbers(), data)
    listed = read_pairs(pairs)
    if listed.num_folds > 1:
        return listed
    dealt = deal_into_folds(listed.pairs)
    counts = f"{len(dealt.pairs):,} of its {len(listed.pairs):,}"
    tests.notes.append(f"The pair list has one block; {counts} pairs were dealt into ten folds.")
    return dealt


def _split_photos(tests: TestSet, split: str) -> list[Photo]:
    """All usable photos of a split, in order."""
    from pipeline.evaluate.pairs import Photo
    from pipeline.evaluate.photos import DatasetPhotos

    assert tests.dataset is not None
    numbers = DatasetPhotos(tests.dataset, [split]).numbers()
    return [Photo(name, number) for name in sorted(numbers) for number in sorted(numbers[name])]


def _difference_notes(tested: DatasetInfo, trained: DatasetInfo) -> list[str]:
    notes = []
    if (tested.detector.name, tested.detector.weights_sha256) != (
        trained.detector.name,
        trained.detector.weights_sha256,
    ):
        notes.append(
            f"The test crops were found by {tested.detector.name}, the training crops by {trained.detector.name}."
        )
    if tested.crop.template != trained.crop.template:
        notes.append("The test crops are aligned to another template than the training crops.")
    return notes


def _numbering_notes(tests: TestSet, pairs: PairList) -> list[str]:
    """Whether names of photos mislead about which ones were compared."""
    people = {photo.identity for photo in pairs.photos()}
    count = len(people & tests.source.contradicting)
    if count == 0:
        return []
    return [
        f"Photos of {count:,} of the {len(people):,} people in the pairs go by their place in the order of paths, not "
        "by the number in their names: not all of the person's photos bear such a name, each another."
    ]


def _overlap_notes(tests: TestSet, loaded: LoadedBackbone, pairs: PairList) -> list[str]:
    """Whether people of the pairs were trained on; knowable when the data set is the one trained on."""
    if tests.dataset is None:
        return []
    splits = [split for split, digest in loaded.trained_on if digest == tests.dataset.info.digest]
    trained_on = {identity for split in splits for identity in tests.dataset.split(split).identities()}
    people = {photo.identity for photo in pairs.photos()}
    seen = len(people & trained_on)
    return [f"The model was trained on {seen:,} of the {len(people):,} people in the pairs."] if seen else []


def _describe(checkpoint: Path, loaded: LoadedBackbone) -> Model:
    from pipeline.evaluate.result import Model

    return Model(
        checkpoint=str(checkpoint),
        step=loaded.step,
        num_samples=loaded.num_samples,
        crop_px=loaded.crop_px,
        embedding_dim=loaded.embedding_dim,
        num_parameters=sum(parameter.numel() for parameter in loaded.module.parameters()),
        config=loaded.config,
        dataset=loaded.dataset,
        weights=loaded.weights,
    )


if __name__ == "__main__":
    run_command(app)
