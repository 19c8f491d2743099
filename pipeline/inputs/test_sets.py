"""What a model is tested on: photos and pairs, opened from a data set, a folder of photos or a public test set."""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pipeline.config.errors import UserError
from pipeline.config.location import RemotePath, parse_location
from pipeline.data.dataset_format import DatasetInfo
from pipeline.data.manifest import Dataset, open_dataset
from pipeline.data.pair_bin import read_pair_bin
from pipeline.evaluate.grouped_pairs import GroupedPairs, Groups, read_grouped_pairs, ungrouped_notes
from pipeline.evaluate.pair_set import PairSetPhotos, list_pairs
from pipeline.evaluate.pairs import PairList, Photo, deal_into_folds, draw_pairs, fold_in_turn, read_pairs
from pipeline.evaluate.photos import Crop, DatasetPhotos, FolderPhotos, ListedPhoto, PhotoSource, Rejected
from pipeline.evaluate.recogniser import Recogniser
from pipeline.evaluate.template_set import TemplateSet
from pipeline.inputs.ijb import IjbPhotos, read_ijb
from pipeline.inputs.listed_pairs import ListedPairs, PathPhotos, digest_files
from pipeline.inputs.public_sets import LISTED_SETS, find_protocol, ijb_name, read_listed, require_known
from preprocess.crops import NO_DETECTOR, CropMaker, CropOptions, describe_detector
from preprocess.sources import read_source

PAIR_BIN_SUFFIX = ".bin"
GROUPED_SUFFIX = ".csv"
DEFAULT_SPLIT = "val"


@dataclass(frozen=True)
class Request:
    """Options of the command line that choose photos and pairs."""

    pairs: Path | None = None
    """A pair list; None: pairs are drawn."""
    split: str | None = None
    """Where pairs are drawn from."""
    detector: str | None = None
    """Of photos that are not aligned; None: the one of the training data."""
    weights: Path | None = None
    """The detector's weight file."""
    protocol: str | None = None
    """The public test set that the data is, one of `public_sets.PROTOCOLS`; None: look at the files."""
    distractors: Path | None = None
    """Strangers to search among, a data set or a folder of photos."""

    def refuse_detector(self, unfit: str) -> None:
        """Raise a `UserError` where a detector is chosen for crops, which `unfit` names."""
        for option, value in (("--detector", self.detector), ("--weights", self.weights)):
            if value is not None:
                raise UserError(option, f"given with {unfit}", "photos that are not aligned yet", f"leave {option} out")


@dataclass
class TestSet:
    """Photos, pairs of them, and what the result records about them."""

    source: PhotoSource
    kind: Literal["dataset", "photos", "pair_bin", "templates"]
    pairs: PairList
    """Empty where templates are compared."""
    detector: dict[str, Any]
    """As `dataset.json` records it."""
    notes: list[str]
    pairs_file: Path | None
    """Where the pairs were read from; None: they were drawn."""
    dataset: Dataset | None = None
    split: str | None = None
    """The split that pairs were drawn from."""
    protocol: str | None = None
    """The public test set, by name."""
    groups: dict[str, Groups] = field(default_factory=dict)
    """Of the photos of each pair, in the pairs' order."""
    templates: TemplateSet | None = None
    knows_people: bool = True
    """Whether it is known who is on the photos."""
    lists: list[Path] = field(default_factory=list)
    """The files that pairs were read from, where they are several."""
    contradicting: set[str] = field(default_factory=set)
    """Identities of whom a photo bears an official name and yet goes by another number."""

    @cached_property
    def split_photos(self) -> list[Photo]:
        """All usable photos, in order, of the split that pairs were drawn from."""
        assert self.dataset is not None
        assert self.split is not None
        return DatasetPhotos(self.dataset, [self.split]).photos()

    def digest_pairs(self) -> str:
        """The SHA-256 of what the pairs were read from."""
        assert self.pairs_file is not None
        return digest_files(self.lists or [self.pairs_file])


def open_test_set(data: Path, recogniser: Recogniser, request: Request) -> TestSet:
    """Open photos and pairs for a model.

    Args:
        data: a data set, a folder of photos that are not aligned, a verification set of InsightFace's (`.bin`), or
            a public test set in its own files (`docs/evaluation.md` says which).
        recogniser: the model, whose crop size and detector count.
        request: see there.

    Raises:
        UserError: no such data, crops of another size, options that do not go together, no pairs.
    """
    if request.pairs is not None and request.split is not None:
        raise UserError("--split", "given with --pairs", "one of them: the split is where pairs are drawn from")
    protocol = request.protocol
    if protocol is None and data.suffix == PAIR_BIN_SUFFIX and data.is_file():
        tests = _open_pair_bin(data, recogniser, request)
    elif protocol is None and is_dataset(data):
        tests = _open_dataset(data, recogniser, request)
    else:
        # A list that is named counts more than lists that lie about.
        protocol = find_protocol(data, protocol) if request.pairs is None else require_known(protocol)
        if protocol is None:
            tests = _open_folder(data, recogniser, request)
        elif protocol in LISTED_SETS:
            if request.split is not None:
                raise UserError("--split", f"given with {protocol}, which has its pairs", remedy="leave --split out")
            tests = _open_listed(read_listed(data, protocol, request.pairs, request.detector), recogniser, request)
            tests.protocol = protocol
        else:
            tests = _open_templates(data, protocol, recogniser, request)
    tests.notes += _numbering_notes(tests) + _overlap_notes(tests, recogniser)
    return tests


def is_dataset(data: Path) -> bool:
    """Whether a path is that of one of our data sets, finished or not."""
    # A directory with commits is a data set that is not finished yet: opening it says so.
    is_remote = isinstance(parse_location(data), RemotePath)
    return is_remote or (data / "dataset.json").is_file() or (data / "commits").is_dir()


def _open_dataset(data: Path, recogniser: Recogniser, request: Request) -> TestSet:
    if request.distractors is None:
        request.refuse_detector("a data set")
    dataset = open_dataset(data)
    recogniser.require_crops(dataset, data)
    notes = [] if recogniser.trained is None else difference_notes(dataset.info, recogniser.trained, "test crops")
    split, groups = None, dict[str, Groups]()
    if request.pairs is None:
        split = request.split or DEFAULT_SPLIT
        pairs = _draw_pairs(dataset, split, data)
    else:
        grouped, dealt = _read_pairs(request.pairs)
        if grouped.are_paths:
            raise UserError(request.pairs, "names photos by path", "people and numbers, by which a data set goes")
        pairs, groups = grouped.pairs, grouped.groups
        notes += dealt
    photos = DatasetPhotos(dataset, sorted(dataset.info.splits))
    return TestSet(
        source=photos,
        kind="dataset",
        pairs=pairs,
        detector=dataset.info.detector.model_dump(mode="json"),
        notes=notes,
        pairs_file=request.pairs,
        dataset=dataset,
        split=split,
        groups=groups,
        contradicting=photos.contradicting,
    )


def _open_folder(data: Path, recogniser: Recogniser, request: Request) -> TestSet:
    if not data.is_dir():
        found = "not a directory" if data.exists() else "no such directory"
        raise UserError(data, found, "a data set, or a folder of folders of photos")
    if request.pairs is None:
        raise UserError(
            data,
            "not a data set, and no --pairs",
            "a pair list, or a public test set in its own files",
            "--pairs FILE, or preprocess shard first, or --protocol NAME to hear which file is missing",
        )
    grouped, dealt = _read_pairs(request.pairs)
    if grouped.are_paths:
        listed = ListedPairs(
            grouped.pairs, data, [request.pairs], request.pairs, grouped.groups, grouped.knows_people, dealt
        )
        return _open_listed(listed, recogniser, request)
    crop, used, notes = cropper(recogniser, request)
    _, table, passed_over = read_source(data, "folders")
    listing = (
        ListedPhoto(*row) for row in zip(*(table[name].to_pylist() for name in ListedPhoto._fields), strict=True)
    )
    notes += [f"In the folder of photos, {sentence}." for sentence in passed_over]
    photos = FolderPhotos(data, listing, crop)
    return TestSet(
        source=photos,
        kind="photos",
        pairs=grouped.pairs,
        detector=used,
        notes=notes + dealt,
        pairs_file=request.pairs,
        groups=grouped.groups,
        contradicting=photos.contradicting,
    )


def _open_listed(listed: ListedPairs, recogniser: Recogniser, request: Request) -> TestSet:
    """Pairs of photos by path, which go through the detector and the aligner."""
    crop, used, notes = cropper(recogniser, request)
    return TestSet(
        source=PathPhotos(listed.root, crop),
        kind="photos",
        pairs=listed.pairs,
        detector=used,
        notes=notes + listed.notes,
        pairs_file=listed.where,
        groups=listed.groups,
        knows_people=listed.knows_people,
        lists=listed.lists,
    )


def _open_templates(data: Path, protocol: str, recogniser: Recogniser, request: Request) -> TestSet:
    """IJB-B or IJB-C, whose photos come with landmarks."""
    for option in ("pairs", "split", "detector", "weights"):
        if getattr(request, option) is not None:
            found = f"given with {protocol}, which has its pairs, and landmarks of all photos"
            raise UserError(f"--{option}", found, remedy=f"leave --{option} out")
    ijb = read_ijb(data, ijb_name(protocol))
    return TestSet(
        source=IjbPhotos(data, ijb.landmarks, recogniser.embedder.crop_px),
        kind="templates",
        pairs=PairList([], 0),
        detector={"name": "given landmarks"},
        notes=[],
        pairs_file=ijb.lists[-1],
        protocol=protocol,
        templates=ijb.templates,
        knows_people=False,
        lists=ijb.lists,
    )


def _open_pair_bin(path: Path, recogniser: Recogniser, request: Request) -> TestSet:
    """A verification set; every option is refused, for it brings aligned photos and pairs."""
    for option, value in vars(request).items():
        if value is not None:
            found = f"given with {path.name}, whose photos are aligned and paired"
            raise UserError(f"--{option}", found, remedy=f"leave --{option} out")
    pairs = read_pair_bin(path)
    crop_px = recogniser.embedder.crop_px
    maker = CropMaker(CropOptions(detector=NO_DETECTOR, size_px=crop_px))

    def crop(image: bytes) -> Crop | Rejected:
        made = maker.make(lambda: image)
        return Rejected(made.reject_reason) if made.crop is None else made.crop

    first = maker.make(lambda: pairs.images[0])
    notes = []
    if recogniser.embedder.stored is None and first.width not in (0, crop_px):
        notes.append(f"The photos of {path.name} ({first.width} px) were resized to the model's {crop_px} px.")
    return TestSet(
        source=PairSetPhotos(pairs, crop),
        kind="pair_bin",
        pairs=list_pairs(pairs),
        detector=describe_detector(maker.options, maker.weights_sha256).model_dump(mode="json"),
        notes=notes,
        pairs_file=path,
        knows_people=False,
    )


def _draw_pairs(dataset: Dataset, split: str, data: Path) -> PairList:
    if split not in dataset.info.splits:
        splits = ", ".join(sorted(dataset.info.splits))
        raise UserError(
            data, f"no split {split!r} to draw pairs from; it has {splits}", "", "--split NAME, or --pairs FILE"
        )
    return draw_pairs(DatasetPhotos(dataset, [split]).numbers(), data)


def _read_pairs(path: Path) -> tuple[GroupedPairs, list[str]]:
    """A pair list in folds, with its groups where it has any, and what to note about them."""
    if path.suffix.lower() == GROUPED_SUFFIX:
        grouped = read_grouped_pairs(path)
        notes = [f"{path.name} names no folds: its pairs were dealt into ten, those of each kind in turn."]
        notes += ungrouped_notes(grouped)
        return GroupedPairs(fold_in_turn(grouped.pairs.pairs), grouped.groups), notes
    listed = read_pairs(path)
    if listed.num_folds > 1:
        return GroupedPairs(listed, {}), []
    dealt = deal_into_folds(listed.pairs)
    counts = f"{len(dealt.pairs):,} of its {len(listed.pairs):,}"
    return GroupedPairs(dealt, {}), [f"The pair list has one block; {counts} pairs were dealt into ten folds."]


def cropper(
    recogniser: Recogniser, request: Request
) -> tuple[Callable[[Path], Crop | Rejected], dict[str, Any], list[str]]:
    """The function from a photo to a crop, what it uses, and how that differs from training.

    Raises:
        UserError: weights without a detector, or a detector that is unknown or not to be chosen without being named.
    """
    trained, crop_px, detector = recogniser.trained, recogniser.embedder.crop_px, request.detector
    if detector == NO_DETECTOR and request.weights is not None:
        raise UserError("--weights", f"given with --detector {NO_DETECTOR}", "one of them", "leave --weights out")
    if trained is None:
        chosen = CropOptions(size_px=crop_px) if detector is None else CropOptions(detector=detector, size_px=crop_px)
        maker = CropMaker(chosen, request.weights)
    elif detector is None and trained.detector.name == NO_DETECTOR:
        raise UserError(
            "--detector",
            "missing, and the training photos came already aligned",
            "mtcnn, yunet, or none for aligned photos",
        )
    elif detector is None:
        maker = CropMaker.from_dataset(trained, request.weights)
    else:
        options = {**trained.detector.options, "detector": detector, "size_px": crop_px}
        maker = CropMaker(CropOptions.model_validate(options), request.weights)
    info = describe_detector(maker.options, maker.weights_sha256)
    notes = []
    is_aligned = info.name == NO_DETECTOR
    if is_aligned:
        notes.append(f"The photos were taken as aligned (--detector none) and scaled to {crop_px} px.")
    if trained is None:
        of = "the model" if recogniser.embedder.stored is None else "whatever made the embeddings"
        found = "" if is_aligned else f"Faces were found by {info.name}. "
        notes.append(f"{found}How the photos of {of} were aligned is not known.")
    elif not is_aligned and (info.name, info.weights_sha256) != (
        trained.detector.name,
        trained.detector.weights_sha256,
    ):
        notes.append(f"Faces were found by {info.name}; the model was trained on those of {trained.detector.name}.")

    def crop(path: Path) -> Crop | Rejected:
        pixels, reason, _ = maker.crop_photo(path)
        return Rejected(reason) if pixels is None else pixels

    return crop, info.model_dump(mode="json"), notes


def difference_notes(tested: DatasetInfo, trained: DatasetInfo, crops: str) -> list[str]:
    """How crops were made otherwise than those of training; `crops` says which, in the notes."""
    notes = []
    if (tested.detector.name, tested.detector.weights_sha256) != (
        trained.detector.name,
        trained.detector.weights_sha256,
    ):
        notes.append(
            f"The {crops} were found by {tested.detector.name}, the training crops by {trained.detector.name}."
        )
    if tested.crop.template != trained.crop.template:
        notes.append(f"The {crops} are aligned to another template than the training crops.")
    return notes


def _numbering_notes(tests: TestSet) -> list[str]:
    """Whether names of photos mislead about which ones were compared."""
    people = {photo.identity for photo in tests.pairs.photos()}
    count = len(people & tests.contradicting)
    if count == 0:
        return []
    return [
        f"Photos of {count:,} of the {len(people):,} people in the pairs go by their place in the order of paths, not "
        "by the number in their names: not all of the person's photos bear such a name, each another."
    ]


def _overlap_notes(tests: TestSet, recogniser: Recogniser) -> list[str]:
    if tests.dataset is None:
        return []
    return seen_notes(tests.dataset, {photo.identity for photo in tests.pairs.photos()}, recogniser, "in the pairs")


def seen_notes(dataset: Dataset, people: Set[str], recogniser: Recogniser, where: str) -> list[str]:
    """Whether people of a data set were trained on; knowable when it is the one trained on.

    Args:
        dataset: the data set.
        people: some of its people.
        recogniser: the model.
        where: where these people are, in words.
    """
    splits = [split for split, digest in recogniser.trained_on if digest == dataset.info.digest]
    trained_on = {identity for split in splits for identity in dataset.split(split).identities()}
    seen = len(people & trained_on)
    return [f"The model was trained on {seen:,} of the {len(people):,} people {where}."] if seen else []
