"""Where the photos of a pair list come from: a finished data set, or a folder of unaligned photos.

Both answer the same questions: which photos of a person are there, why is one missing, and what are its pixels.
The photo `Name n` is the one called `Name_%04d` after the official scheme where all of the person's photos bear such
names, each another. Otherwise n counts the person's photos in the order of their paths. Rejected photos count in both
cases, so that numbers never shift.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from pipeline.data.dataset_format import STATUS_KEPT
from pipeline.data.decode_cpu import decode_crop
from pipeline.data.manifest import Dataset, local_manifests, read_manifest
from pipeline.data.reader import WITHDRAWN, BadSample, Reader
from pipeline.evaluate.pairs import Photo

Crop: TypeAlias = npt.NDArray[np.uint8]
"""[H, W, 3] uint8, RGB."""

OFFICIAL_NUMBER = re.compile(r"_([0-9]{4,9})\Z")
_COLUMNS = ("identity", "source", "status", "reject_reason", "key")


@dataclass(frozen=True)
class Rejected:
    """Why a photo that exists has no crop."""

    reason: str


class ListedPhoto(NamedTuple):
    """A photo of a folder, listed as `preprocess shard` lists it."""

    identity: str
    source: str
    """Relative to the folder, with "/"."""
    problem: str
    """Why it cannot be used, where that is known without reading it; else empty."""


class _Place(NamedTuple):
    """A kept row: a split and a row of its index."""

    split: str
    row: int
    key: str


class PhotoSource(Protocol):
    """Photos of people by identity and number."""

    def load(self, photo: Photo) -> Crop | Rejected:
        """The aligned crop of a photo, or why there is none. Called from one thread at a time."""
        ...


def number_photos(identity: str, paths: Iterable[str]) -> dict[int, str]:
    """Give one person's photos their numbers, as this module's head says: each photo gets one, none is left out."""
    ordered = sorted(paths)
    named = {number: path for path in ordered if (number := _official_number(identity, path))}
    return named if len(named) == len(ordered) else dict(enumerate(ordered, start=1))


def contradicts_names(identity: str, numbered: Mapping[int, str]) -> bool:
    """Whether a photo bears an official name and yet goes by another number."""
    return any(_official_number(identity, path) not in (0, number) for number, path in numbered.items())


def _official_number(identity: str, path: str) -> int:
    """The number in an official name, from 1; 0 for any other name."""
    stem = PurePosixPath(path).stem
    match = OFFICIAL_NUMBER.search(stem)
    number = int(match[1]) if match else 0
    return number if stem == str(Photo(identity, number)) else 0


class DatasetPhotos:
    """Crops of a finished data set, read straight from its shards through the manifest.

    Attributes:
        contradicting: identities of whom a photo bears an official name and yet goes by another number.
    """

    def __init__(self, dataset: Dataset, splits: Iterable[str]) -> None:
        """Read the manifests of `splits`, rejects included: they have numbers too, and a reason.

        Raises:
            UserError: no such split, or a manifest is missing or unreadable.
        """
        self._crop_px = dataset.info.crop.size_px
        self._readers: dict[str, Reader] = {}
        places: dict[str, dict[str, _Place | Rejected]] = defaultdict(dict)
        for split in splits:
            index = dataset.split(split)
            self._readers[split] = Reader(index)
            withdrawn = set(index.withdrawn.tolist())
            row = 0  # the index holds the manifests' kept rows in the same order
            names = {split: dataset.info.splits[split].shards}
            for manifest in local_manifests(dataset.root, dataset.mirror, names):
                table = read_manifest(manifest, _COLUMNS)
                for identity, source, status, reason, key in zip(
                    *(table[name].to_pylist() for name in _COLUMNS), strict=True
                ):
                    if status == STATUS_KEPT:
                        is_withdrawn = row in withdrawn
                        places[identity][source] = Rejected(WITHDRAWN) if is_withdrawn else _Place(split, row, key)
                        row += 1
                    else:
                        places[identity][source] = Rejected(reason)
        numbered = {identity: number_photos(identity, by_source) for identity, by_source in places.items()}
        self.contradicting = {identity for identity, paths in numbered.items() if contradicts_names(identity, paths)}
        self._places = {
            Photo(identity, number): places[identity][source]
            for identity, paths in numbered.items()
            for number, source in paths.items()
        }

    def numbers(self) -> Mapping[str, list[int]]:
        """The numbers of each identity's photos that have a crop."""
        kept: dict[str, list[int]] = defaultdict(list)
        for photo, place in self._places.items():
            if not isinstance(place, Rejected):
                kept[photo.identity].append(photo.number)
        return kept

    def photos(self) -> list[Photo]:
        """All photos that have a crop, in order."""
        return sorted(photo for photo, place in self._places.items() if not isinstance(place, Rejected))

    def key(self, photo: Photo) -> str | Rejected:
        """The key of a photo's sample, or why it has none."""
        place = self._places.get(photo, Rejected("not in the data set"))
        return place if isinstance(place, Rejected) else place.key

    def load(self, photo: Photo) -> Crop | Rejected:
        place = self._places.get(photo, Rejected("not in the data set"))
        if isinstance(place, Rejected):
            return place
        content = self._readers[place.split].read(place.row)
        if isinstance(content, BadSample):
            return Rejected(f"{content.reason} in {content.shard}: {content.detail}")
        pixels = np.empty((self._crop_px, self._crop_px, 3), np.uint8)
        failure = decode_crop(content, pixels)
        return pixels if failure is None else Rejected(f"{failure.reason}: {failure.detail}")


class FolderPhotos:
    """Photos of a folder that are not aligned yet, cropped by a function that is handed in.

    Attributes:
        contradicting: identities of whom a photo bears an official name and yet goes by another number.
    """

    def __init__(self, root: Path, listing: Iterable[ListedPhoto], crop: Callable[[Path], Crop | Rejected]) -> None:
        """Number the photos below `root`; `listing` must be the one that sharding uses, or numbers would differ."""
        self._root, self._crop = root, crop
        people: dict[str, dict[str, ListedPhoto]] = defaultdict(dict)
        for listed in listing:
            people[listed.identity][listed.source] = listed
        numbered = {identity: number_photos(identity, by_source) for identity, by_source in people.items()}
        self.contradicting = {identity for identity, paths in numbered.items() if contradicts_names(identity, paths)}
        self._listed = {
            Photo(identity, number): people[identity][source]
            for identity, paths in numbered.items()
            for number, source in paths.items()
        }

    def numbers(self) -> Mapping[str, list[int]]:
        """The numbers of each identity's photos that are readable, as far as is known without reading them."""
        found: dict[str, list[int]] = defaultdict(list)
        for photo, listed in self._listed.items():
            if not listed.problem:
                found[photo.identity].append(photo.number)
        return found

    def load(self, photo: Photo) -> Crop | Rejected:
        listed = self._listed.get(photo)
        if listed is None:
            return Rejected("no such file")
        return Rejected(listed.problem) if listed.problem else self._crop(self._root / listed.source)
