"""Strangers to search among: the photos of a data set, or all photos below a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.config.errors import UserError
from pipeline.data.manifest import open_dataset
from pipeline.evaluate.distractors import search_among
from pipeline.evaluate.embed import Embeddings
from pipeline.evaluate.pairs import Photo
from pipeline.evaluate.photos import DatasetPhotos, PhotoSource
from pipeline.evaluate.recogniser import Recogniser
from pipeline.evaluate.result import Distractors
from pipeline.evaluate.sections import Progress
from pipeline.evaluate.template_set import embed_rows
from pipeline.inputs.listed_pairs import PathPhotos
from pipeline.inputs.test_sets import Request, cropper, is_dataset
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
        request: its `distractors` are a data set, or a folder whose photos go through the detector and the aligner.
        people: those who search.

    Raises:
        UserError: no such data, crops of another size, or no photos of strangers.
    """
    path = request.distractors
    assert path is not None
    source: PhotoSource
    notes: list[str] = []
    if is_dataset(path):
        dataset = open_dataset(path)
        crop_px = recogniser.embedder.crop_px
        if dataset.info.crop.size_px != crop_px:
            raise UserError(path, f"crops of {dataset.info.crop.size_px} px", f"{crop_px} px, as the model takes")
        photos_source = DatasetPhotos(dataset, sorted(dataset.info.splits))
        numbers = photos_source.numbers()
        photos = [Photo(name, number) for name in sorted(numbers) for number in sorted(numbers[name])]
        source = photos_source
    elif path.is_dir():
        crop, _, said = cropper(recogniser, request)
        notes += [f"Of the distractors: {sentence}" for sentence in said]
        photos = [Photo(Path(name).parts[0], 0, name) for name in sorted(_walk(path))]
        source = PathPhotos(path, photos, crop)
    else:
        raise UserError(path, "no such folder", "a data set, or a folder of photos of strangers")
    strangers = [photo for photo in photos if photo.identity not in people]
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


def _walk(root: Path) -> Iterator[str]:
    """The paths of all photos below a folder, relative to it; hidden ones are passed over."""
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and Path(name).suffix.lower() in PHOTO_SUFFIXES:
                yield os.path.relpath(os.path.join(folder, name), root)
