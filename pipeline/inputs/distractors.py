"""Strangers to search among: the photos of a data set, or all photos below a folder."""

from __future__ import annotations

import os
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.config.errors import UserError
from pipeline.data.manifest import open_dataset
from pipeline.evaluate.distractors import search_among
from pipeline.evaluate.embed import Embeddings
from pipeline.evaluate.pairs import Photo
from pipeline.evaluate.photos import OFFICIAL_NUMBER, DatasetPhotos, PhotoSource
from pipeline.evaluate.recogniser import Recogniser
from pipeline.evaluate.result import Distractors
from pipeline.evaluate.sections import Progress
from pipeline.evaluate.template_set import embed_rows
from pipeline.inputs.listed_pairs import PathPhotos
from pipeline.inputs.test_sets import Request, cropper, difference_notes, is_dataset, seen_notes
from preprocess.photo import PHOTO_SUFFIXES

MOST = 1_000_000
"""As many as MegaFace has; of more, so many are drawn."""


@dataclass(frozen=True)
class Strangers:
    """Photos of people who are searched for by nobody."""

    path: Path
    source: PhotoSource
    photos: list[Photo]
    """In an order drawn once, so that the first ten are of ten people, not of one."""
    num_own: int
    """Photos left out because their person is among those who search."""
    notes: list[str]


def open_distractors(recogniser: Recogniser, request: Request, people: Set[str]) -> Strangers:
    """Open the photos; those of `people`, who search, are left out where the photos bear names.

    Args:
        recogniser: the model, whose crop size and detector count.
        request: its `distractors` are a data set, or a folder whose photos go through the detector and the aligner; a
            photo of a folder bears the names of all folders on its path, and its own where that is `NAME_0001`.
        people: those who search.

    Raises:
        UserError: no such data, crops of another size, a detector where there are no unaligned photos, or no photos of
            strangers.
    """
    path = request.distractors
    assert path is not None
    source: PhotoSource
    notes: list[str] = []
    if is_dataset(path):
        request.refuse_detector("data sets")
        dataset = open_dataset(path)
        recogniser.require_crops(dataset, path)
        if recogniser.trained is not None:
            notes += difference_notes(dataset.info, recogniser.trained, "distractors' crops")
        source = DatasetPhotos(dataset, sorted(dataset.info.splits))
        photos = source.photos()
        shown = {photo.identity for photo in photos}
        notes += seen_notes(dataset, shown - people, recogniser, "among the distractors")
    elif path.is_dir():
        crop, _, said = cropper(recogniser, request)
        notes += [f"Of the distractors: {sentence}" for sentence in said]
        names, unreadable = _walk(path)
        if unreadable:
            first = f"the first {unreadable[0].filename} ({unreadable[0].strerror})"
            notes.append(f"{len(unreadable):,} folders of distractors could not be read, {first}.")
        photos = [Photo(Path(name).parts[0], 0, name) for name in sorted(names)]
        source = PathPhotos(path, crop)
    else:
        raise UserError(path, "no such folder", "a data set, or a folder of photos of strangers")
    strangers = [photo for photo in photos if people.isdisjoint(_names(photo))]
    if not strangers:
        raise UserError(path, f"{len(photos):,} photos, of strangers none", "photos of people who are not in --data")
    order = np.random.RandomState(0).permutation(len(strangers))[:MOST]
    if len(strangers) > MOST:
        notes.append(f"Of {len(strangers):,} distractors, {MOST:,} were drawn.")
    return Strangers(path, source, [strangers[place] for place in order], len(photos) - len(strangers), notes)


def search_distractors(
    recogniser: Recogniser,
    strangers: Strangers,
    found: Embeddings,
    *,
    batch: int,
    flip: bool,
    progress: Progress,
) -> Distractors:
    """Embed strangers and search the photos of `found` among them.

    Args:
        recogniser: the model.
        strangers: see `open_distractors`.
        found: embeddings of the photos that are searched.
        batch, flip: see `extract_embeddings`.
        progress: shows how a number of photos is embedded.

    Raises:
        UserError: none of the strangers' photos can be used.
    """
    with progress(len(strangers.photos), "embedding distractors") as advance:
        rows = embed_rows(
            recogniser.embedder, strangers.source, strangers.photos, batch=batch, flip=flip, advance=advance
        )
    return search_among(found, rows, str(strangers.path), strangers.num_own)


def _names(photo: Photo) -> list[str]:
    """Whom a photo may show, by its names."""
    if not photo.path:
        return [photo.identity]
    *folders, name = Path(photo.path).parts
    named = OFFICIAL_NUMBER.search(Path(name).stem)
    return folders if named is None else [*folders, name[: named.start()]]


def _walk(root: Path) -> tuple[list[str], list[OSError]]:
    """The paths of all photos below a folder, relative to it, and why folders were unreadable.

    Links are followed; what is hidden is passed over, and what several links lead to counts once.
    """
    found: list[str] = []
    unreadable: list[OSError] = []
    walked: set[str] = set()
    for folder, folders, names in os.walk(root, followlinks=True, onerror=unreadable.append):
        real = os.path.realpath(folder)
        if real in walked:
            folders.clear()
            continue
        walked.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            if not name.startswith(".") and Path(name).suffix.lower() in PHOTO_SUFFIXES:
                found.append(os.path.relpath(os.path.join(folder, name), root))
    return found, unreadable
